"""Command line: ``python -m bench.compare install``, ``latency``, ``server``, ``search-scale``, ``training``."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.compare import latency as latency_bench
from bench.compare import search_scale, training
from bench.compare import server as server_bench
from bench.compare.contenders import ENVIRONMENTS, OURS, Contender, Models, contenders
from bench.compare.environments import install, installed, python_of, versions
from bench.compare.tables import failed_lines, latency_table, ratio_table, server_table
from bench.encoders.real_sources import real_source
from bench.machine import processor
from bench.markdown import replace_between
from fluxtalk.artifacts.bundle import read_bundle
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import Function, debug_option, option, sentence_errors
from fluxtalk.datasets import default_cache_dir
from fluxtalk.errors import BackendError, UsageError

ENVIRONMENTS_FOLDER = Path(".venv-compare")
RESULTS = Path("bench/results/compare")
_CONVERT = Path(__file__).parent / "peers" / "convert.py"
_IMAGE = "tf_efficientnet_lite0"


@click.group()
def main() -> None:
    """Measure FluxTalk side by side with what users would pick instead."""


@main.command("install")
@option(
    "--environments", default=ENVIRONMENTS_FOLDER, show_default=True, type=click.Path(path_type=Path), help="Folder."
)
@option("--only", multiple=True, type=click.Choice(tuple(ENVIRONMENTS)), help="Environment; repeat for several.")
@option("--torch-index", help="URL that pip takes torch from.")
@debug_option
@sentence_errors
def install_command(environments: Path, only: tuple[str, ...], torch_index: str | None) -> None:
    """Make one environment for each peer, with pinned versions."""
    failed = install(environments, only, torch_index)
    for name in ENVIRONMENTS:
        click.echo(f"{name}: {failed.get(name, 'installed')}")


def _measuring(command: Function) -> Function:
    folder = click.Path(path_type=Path)
    for made in (
        option("--bundle", required=True, type=folder, help="Bundle of `fluxtalk align` on icons with MiniLM."),
        option("--environments", default=ENVIRONMENTS_FOLDER, show_default=True, type=folder, help="Folder."),
        option("--contender", "chosen", multiple=True, help="Contender; repeat for several.  [default: all]"),
        option("--threads", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1), help="Of each."),
        option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of every contender."),
        option("--docs", type=folder, help="Document to write the tables into."),
        debug_option,
        sentence_errors,
    ):
        command = made(command)
    return command


@main.command("latency")
@option("--seconds", default=1.0, show_default=True, type=float, help="About how long a contender is timed in a turn.")
@option("-o", "--output", default=RESULTS / "latency.json", show_default=True, type=click.Path(path_type=Path))
@_measuring
def latency_command(output: Path, docs: Path | None, **settings: Any) -> None:
    """Time single calls of every contender, by batch and length."""
    content = _run(latency_bench.measure, lambda one: one.is_timed, **settings)
    write_json(output, content)
    _report([ratio_table(content), latency_table(content), failed_lines(content)], docs, "latency")


@main.command("server")
@option("--seconds", default=5.0, show_default=True, type=float, help="Length of one measurement.")
@option("-o", "--output", default=RESULTS / "server.json", show_default=True, type=click.Path(path_type=Path))
@_measuring
def server_command(output: Path, docs: Path | None, **settings: Any) -> None:
    """Send load to every contender behind HTTP."""
    content = _run(
        server_bench.measure, lambda one: one.modality == "text" and (one.is_ours or bool(one.server)), **settings
    )
    write_json(output, content)
    _report([server_table(content), failed_lines(content)], docs, "server")


@main.command("search-scale")
@option("--bundle", required=True, type=click.Path(path_type=Path), help="Bundle of `fluxtalk align` on icons.")
@option("--icons", required=True, type=click.Path(path_type=Path), help="Folder that python -m bench.icons built.")
@option("--items", "count", default=1_000_000, show_default=True, type=click.IntRange(100), help="Items to search.")
@option("--pictures", default=4_000, show_default=True, type=click.IntRange(1), help="Pictures that are embedded.")
@option("--queries", default=200, show_default=True, type=click.IntRange(1), help="Names that are asked for.")
@option("-o", "--output", default=RESULTS / "search.json", show_default=True, type=click.Path(path_type=Path))
@option("--docs", type=click.Path(path_type=Path), help="Document to write the table into.")
@debug_option
@sentence_errors
def search_command(output: Path, docs: Path | None, **settings: Any) -> None:
    """Search many items with our index and with databases; go on where a call was stopped."""
    begin = time.monotonic()
    content = search_scale.measure(**settings, store=output)
    content = {"machine": _machine(begin, {OURS: versions(OURS, ENVIRONMENTS_FOLDER)}), **content}
    write_json(output, content)
    _report([search_scale.table(content), failed_lines(content)], docs, "search")


@main.command("training")
@option("--icons", required=True, type=click.Path(path_type=Path), help="Folder that python -m bench.icons built.")
@option("--stage1", required=True, type=click.Path(path_type=Path), help="Encoders of `fluxtalk align` on the icons.")
@option("--cache-dir", help="Cache of features.  [default: ~/.cache/fluxtalk]")
@option("--epochs", default=24, show_default=True, type=click.IntRange(1), help="Passes over the training ids.")
@option("--threads", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1), help="Of each.")
@option(
    "--environments", default=ENVIRONMENTS_FOLDER, show_default=True, type=click.Path(path_type=Path), help="Folder."
)
@option("-o", "--output", default=RESULTS / "training.json", show_default=True, type=click.Path(path_type=Path))
@option("--docs", type=click.Path(path_type=Path), help="Document to write the table into.")
@debug_option
@sentence_errors
def training_command(
    cache_dir: str | None, environments: Path, threads: int, output: Path, docs: Path | None, **settings: Any
) -> None:
    """Train on the same frozen features, and score what each finds."""
    begin = time.monotonic()
    content = training.measure(
        cache_dir=default_cache_dir(cache_dir), environments=environments, threads=threads, **settings
    )
    found = {name: versions(name, environments) for name in installed(environments)}
    content = {"machine": _machine(begin, found), "threads": threads, **content}
    write_json(output, content)
    _report([training.training_table(content), failed_lines(content)], docs, "training")


def _machine(begin: float, found: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "revision": git_revision(),
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "versions": found,
    }


def _run(
    measure: Callable[..., dict[str, Any]],
    takes: Callable[[Contender], bool],
    bundle: Path,
    environments: Path,
    chosen: tuple[str, ...],
    threads: int,
    seconds: float,
    rounds: int,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        models = _models(bundle, environments, Path(folder))
        found = [one for one in contenders(models) if takes(one)]
        unknown = set(chosen) - {one.name for one in found}
        if unknown:
            raise UsageError(
                f"Contenders are {', '.join(one.name for one in found)}; got {', '.join(sorted(unknown))}."
            )
        found = [one for one in found if not chosen or one.name in chosen]
        begin = time.monotonic()
        content = measure(found, models, environments, threads, seconds, rounds)
    return {
        "machine": _machine(begin, {name: versions(name, environments) for name in installed(environments)}),
        "threads": threads,
        "rounds": rounds,
        **content,
    }


def _models(bundle: Path, environments: Path, work: Path) -> Models:
    """Prepare the same encoders for everyone: folders by the libraries' own converters, and timm's graph."""
    text = real_source("minilm", work).partition(":")[2]
    converted = environments / "models"
    python = python_of("sentence-transformers", environments)
    ran = subprocess.run(
        [python, _CONVERT, text, converted], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendError(f"sentence-transformers' converters failed: {said}")
    image = None
    if "image" in read_bundle(bundle, check_hashes=False).manifest.modalities:
        weights = real_source("efficientnet-lite0", converted).partition("@")[2]
        graph = converted / f"{_IMAGE}.onnx"
        if not graph.exists():
            _export_timm(weights, graph)
        image = (_IMAGE, weights, str(graph))
    return Models(bundle, text, converted, image)


def _export_timm(weights: str, path: Path) -> None:
    """Export the image encoder as a user of timm would: PyTorch's exporter with a dynamic batch."""
    import timm
    import torch
    from safetensors.torch import load_file

    made = timm.create_model(_IMAGE, num_classes=0).eval()
    made.load_state_dict(load_file(weights), strict=False)
    torch.onnx.export(
        made,
        (torch.zeros(2, 3, 224, 224),),
        str(path),
        input_names=["pixels"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        external_data=False,
        verbose=False,
    )


def _report(paragraphs: list[str], docs: Path | None, name: str) -> None:
    kept = [paragraph for paragraph in paragraphs if paragraph]
    for paragraph in kept:
        click.echo(paragraph + "\n")
    if docs is not None:
        replace_between(docs, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", kept)


if __name__ == "__main__":
    main()
