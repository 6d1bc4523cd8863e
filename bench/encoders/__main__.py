"""``python -m bench.encoders``: every family of encoders through everything, and the table of what came of it.

Each family is a result of its own, kept as soon as it is there: a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch

from bench.encoders.families import families
from bench.encoders.proof import Proof, prove
from bench.encoders.torchvision_operators import declare_torchvision_operators
from bench.machine import processor
from bench.markdown import markdown_table, replace_between
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors

RESULTS = Path("bench/results/encoders.json")
_PACKAGES = ("torch", "transformers", "timm", "open_clip_torch", "onnx", "onnxruntime", "tensorrt_rtx", "numpy")
_BEGIN, _END = "<!-- encoders: begin -->", "<!-- encoders: end -->"


@click.command()
@option("--results", default=RESULTS, show_default=True, type=click.Path(path_type=Path), help="File of results.")
@option(
    "--family",
    "names",
    multiple=True,
    metavar="NAME",
    help="Family to run, repeatable.  [default: those without a result]",
)
@option("--again", is_flag=True, help="Run families that have a result, too.")
@option("--table", is_flag=True, help="Run nothing; print the table of the results.")
@option("--docs", type=click.Path(path_type=Path, dir_okay=False), help="Document to write the table into.")
@debug_option
@sentence_errors
def main(results: Path, names: tuple[str, ...], again: bool, table: bool, docs: Path | None) -> None:
    """Build small encoders of every family, save them with their own libraries, and take each through everything."""
    content = json.loads(results.read_text()) if results.exists() else {"families": {}}
    if not table:
        _run(content, results, names, again)
    if docs is not None:
        replace_between(docs, _BEGIN, _END, [encoder_table(content), machine_line(content)])
    click.echo(encoder_table(content))


def _run(content: dict[str, Any], results: Path, names: tuple[str, ...], again: bool) -> None:
    declare_torchvision_operators()
    _quiet()
    torch.set_num_threads(2)
    for family in families():
        if (names and family.name not in names) or (family.name in content["families"] and not (again or names)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            proof = prove(family, Path(folder), compile_engine=True)
        click.echo(f"{family.name}: {proof.stopped or 'through'}, {proof.seconds} s")
        found = {**content["families"], family.name: dataclasses.asdict(proof)}
        content["families"] = {one.name: found[one.name] for one in families() if one.name in found}
        content["machine"] = {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "date": time.strftime("%Y-%m-%d"),
            "revision": git_revision(),
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        }
        write_json(results, content)


def encoder_table(content: Mapping[str, Any]) -> str:
    """Write the results as a table in Markdown."""
    rows = []
    for values in content["families"].values():
        proof = Proof(**values)
        rows.append(
            [
                proof.family,
                proof.kind,
                _number(proof.features),
                _input(proof),
                "yes" if proof.trained else "no",
                _number(proof.parity),
                _number(proof.promise),
                proof.engine or "-",
                proof.stopped or "",
            ]
        )
    header = ["encoder", "", "features", "input", "trained", "parity", "promise", "TensorRT-RTX", "refused"]
    return markdown_table(header, rows)


def machine_line(content: Mapping[str, Any]) -> str:
    """Describe the machine and versions of the results."""
    machine = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"({machine['processor']}, {machine['threads']} threads, {machine['date']}; {versions}.)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _input(proof: Proof) -> str:
    if proof.preprocessing is None:
        return "-"
    if proof.kind == "text":
        return "equal ids" if proof.preprocessing == 0 else f"{proof.preprocessing:.0f}"
    if proof.kind == "image":
        return f"{proof.preprocessing:.0f} levels of 255" if proof.preprocessing > 0.5 else "equal pixels"
    return _number(proof.preprocessing)


def _quiet() -> None:
    """Keep progress and warnings of the libraries out of the list."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
