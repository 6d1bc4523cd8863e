"""`fluxtalk inspect`: describe any checkpoint, run, bundle or index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fluxtalk.artifacts.bundle import MANIFEST
from fluxtalk.artifacts.index import IndexFiles
from fluxtalk.artifacts.run import RunFolder, read_run_json
from fluxtalk.console import debug_option, sentence_errors
from fluxtalk.errors import ArtifactError


@click.command(name="inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@sentence_errors
def main(path: Path, as_json: bool) -> None:
    """Verify PATH and describe it: a stage 1 or stage 2 checkpoint, a run, a bundle or an index."""
    info = inspect(path)
    if as_json:
        click.echo(json.dumps(info, indent=2, ensure_ascii=False))
        return
    for line in _lines(info, ""):
        click.echo(line)


def inspect(path: Path) -> dict[str, Any]:
    """Describe an artifact by its content; ``kind`` says which it is.

    Raises:
        ArtifactError: it is not an artifact of FluxTalk, or was changed.
    """
    if path.is_dir():
        for file, read in (
            (path / MANIFEST, _bundle),
            (RunFolder(path).description, _run),
            (IndexFiles(path).manifest, _index),
        ):
            if file.is_file():
                return read(path)
    elif path.suffix == ".safetensors":
        return _head(path)
    elif path.suffix == ".pth":
        return _stage1(path)
    what = "does not exist" if not path.exists() else "is not one of these"
    raise ArtifactError(
        f"Inspect takes a stage 1 .pth, a stage 2 .safetensors, a run, a bundle or an index; {path} {what}."
    )


def _bundle(path: Path) -> dict[str, Any]:
    from fluxtalk.artifacts.bundle import read_bundle
    from fluxtalk.artifacts.engine import read_engines

    bundle = read_bundle(path)
    manifest = bundle.manifest.to_dict()
    for entry in manifest["modalities"].values():
        entry["bytes"] = {precision: (path / file).stat().st_size for precision, file in entry["graphs"].items()}
    engines = {
        record.file: {
            "compute_capabilities": ", ".join(record.compute_capabilities),
            "bytes": record.engine_bytes,
            "built_at": record.built_at,
        }
        for record in read_engines(bundle.engines)
    }
    return {"kind": "bundle", **manifest, **({"engines": engines} if engines else {})}


def _index(path: Path) -> dict[str, Any]:
    from fluxtalk.artifacts.index import read_index

    return {"kind": "index", **read_index(path).manifest.to_dict()}


def _run(path: Path) -> dict[str, Any]:
    folder = RunFolder(path)
    checkpoints = {p.stem: _head(p)["progress"] for p in sorted(folder.checkpoints.glob("*.safetensors"))}
    results = folder.read_results()
    scores = {"test_recall": results["recall"]} if results is not None else {}
    return {"kind": "run", **read_run_json(path), "checkpoints": checkpoints, **scores}


def _head(path: Path) -> dict[str, Any]:
    from fluxtalk.model.checkpoints.head import load_head

    head = load_head(path)
    return {
        "kind": "stage 2 checkpoint",
        "config": head.config.to_dict(),
        "parameters": sum(tensor.numel() for tensor in head.weights.values()),
        "reductions": {name: part.config.to_dict() for name, part in head.reductions.items()},
        "progress": dict(head.progress),
        "resumable": bool(head.training_state),
        "stage1_hash": head.stage1_hash,
        **head.identity.fields(),
    }


def _stage1(path: Path) -> dict[str, Any]:
    from fluxtalk.model.checkpoints.stage1 import load_stage1

    stage1 = load_stage1(path)
    return {
        "kind": "stage 1 checkpoint",
        "data": stage1.data,
        "content_hash": stage1.content_hash(),
        "modalities": {
            name: {
                **part.spec.to_dict(),
                "parameters": sum(tensor.numel() for tensor in part.weights.values()),
                "preprocess": part.preprocess.to_parts()[0],
            }
            for name, part in stage1.modalities.items()
        },
        "figures": dict(stage1.figures),
        **stage1.identity.fields(),
    }


def _lines(value: Any, indent: str) -> list[str]:
    lines: list[str] = []
    for name, part in value.items():
        if isinstance(part, dict):
            lines += [f"{indent}{name}:", *_lines(part, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {part}")
    return lines
