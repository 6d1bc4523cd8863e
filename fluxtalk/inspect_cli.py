"""`fluxtalk inspect`: what any checkpoint, run, bundle or index is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fluxtalk.console import debug_option, sentence_errors
from fluxtalk.errors import ArtifactError


@click.command(name="inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@debug_option
@sentence_errors
def main(path: Path, as_json: bool) -> None:
    """Verify PATH and say what it is: a stage 1 or stage 2 checkpoint, a run, a bundle or an index."""
    facts = inspect(path)
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for line in _lines(facts, ""):
        click.echo(line)


def inspect(path: Path) -> dict[str, Any]:
    """Facts about an artifact, by its content; ``kind`` says which it is.

    Raises:
        ArtifactError: it is none of ours, or was changed.
    """
    if path.is_dir():
        for name, read in (("manifest.json", _bundle), ("run.json", _run), ("index.json", _index)):
            if (path / name).is_file():
                return read(path)
    elif path.suffix == ".safetensors":
        return _head(path)
    elif path.suffix == ".pth":
        return _stage1(path)
    what = "does not exist" if not path.exists() else "is none of these"
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
    from fluxtalk.model.checkpoints.run import read_run_config

    content = read_run_config(path)
    results = path / "results.json"
    checkpoints = {p.stem: _head(p)["progress"] for p in sorted((path / "checkpoints").glob("*.safetensors"))}
    scores = {"test_recall": json.loads(results.read_text())["recall"]} if results.is_file() else {}
    return {"kind": "run", **content, "checkpoints": checkpoints, **scores}


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
