"""Sizes, parity, quality and latency of every precision of an export, and compiled engines.

``python -m bench.latency.export --run RUN -o RESULTS.json``: exports the run in every precision into a temporary
folder, as a user would, verifies it, compiles it with TensorRT-RTX if that is installed, and prints the tables of
docs/export.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from bench.machine import processor
from bench.markdown import markdown_table, replace_between
from fluxtalk.artifacts.bundle import QUALITY, Bundle, read_bundle
from fluxtalk.artifacts.engine import read_engines
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.datasets import default_cache_dir, load_dataset
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.trained_run import open_run
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.verify import verify_bundle

_PACKAGES = ("fluxtalk", "torch", "onnx", "onnxruntime", "tensorrt_rtx")
_MARK, _END = "<!-- measured by bench/latency/export.py -->", "<!-- end -->"
_KINDS = ("static", "weight-only", "dynamic")


@click.command()
@click.option("--run", required=True, type=click.Path(path_type=Path), help="A training run, such as the demo's.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .json to write.")
@option("--compute_capability", default="8.9", show_default=True, help="Engines are compiled for it; empty for none.")
@option("--cache_dir", help="Cache of renderings.  [default: the run's]")
@click.option("--docs", type=click.Path(path_type=Path), help="A Markdown file to put the tables into, at its marks.")
@debug_option
@sentence_errors
def main(run: Path, output: Path | None, compute_capability: str, cache_dir: str | None, docs: Path | None) -> None:
    """Export RUN in every precision and measure the result."""
    results: dict[str, Any] = {
        "architecture": processor(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "versions": {name: metadata.version(name) for name in _PACKAGES if _installed(name)},
        "precisions": {},
    }
    opened = open_run(run)
    cache = default_cache_dir(cache_dir or opened.description.options["cache_dir"])
    dataset = load_dataset(opened.data, cache, opened.stage1.kinds)
    with tempfile.TemporaryDirectory() as scratch:
        for number, (precisions, int8) in enumerate(
            [(("fp32", "fp16", "bf16"), "auto"), *((("int8",), k) for k in _KINDS)]
        ):
            folder = Path(scratch) / str(number)
            start = time.perf_counter()
            # Also what the gate refuses is measured here.
            options = ExportOptions(precisions, int8, allow_quality_loss=True)
            bundle = write_bundle(opened, dataset, folder, options, click.echo)
            seconds = time.perf_counter() - start
            quality = json.loads((folder / QUALITY).read_text())["precisions"]
            parity = json.loads(verify_bundle(folder, BackendOptions()).json())
            if "fp32" in precisions:
                results["float32"] = {m: e.float32.to_dict() for m, e in bundle.manifest.modalities.items()}
            for precision in precisions:
                label = precision if precision != "int8" else f"int8 {int8}"
                results["precisions"][label] = {
                    "bytes": {m: bundle.graph(m, precision).stat().st_size for m in bundle.manifest.modalities},
                    "export_seconds": round(seconds / len(precisions), 1),
                    "serving": bundle.manifest.precisions[precision].serving,
                    "quality": quality[precision],
                    "parity": [r for r in parity["reports"] if r["precision"] == precision],
                }
        if compute_capability and _installed("tensorrt_rtx"):
            results["engines"] = _compile(read_bundle(Path(scratch) / "0"), compute_capability)
    for table in tables(results):
        click.echo("\n" + table)
    if output is not None:
        write_json(output, results)
    if docs is not None:
        write_tables(docs, results)


def write_tables(docs: Path, results: dict[str, Any]) -> None:
    """Replace the text between the marks of a Markdown file."""
    where = f"{results['architecture']}, {results['cores']} cores, no GPU, {results['date']}"
    titles = (
        f"Sizes, and milliseconds for one item (ONNX Runtime, {where}; encoders of 1.1 and 0.8 million parameters):",
        "What float32 itself costs, eager against float64 on the golden inputs, and what the float32 graph promises:",
        "What each costs on held-out pairs, the worst direction and k; *rows apart*: an item alone and in a batch:",
        "`verify`, k = 1 and all:",
        "TensorRT-RTX, compiled without a GPU for compute capability 8.9:",
    )
    parts = [f"{title}\n\n{table}" for title, table in zip(titles, tables(results), strict=False)]
    replace_between(docs, _MARK, _END, parts)


def tables(results: dict[str, Any]) -> list[str]:
    """The tables of docs/export.md."""
    found = results["precisions"]
    modalities = list(found["fp32"]["bytes"])
    tokens = list(found["fp32"]["serving"]["latency_ms"][modalities[0]])
    sizes = markdown_table(
        [
            "precision",
            *(f"{m}, MB" for m in modalities),
            *(f"{m}, ms at k={k}" for m in modalities for k in (tokens[0], tokens[-1])),
        ],
        [
            [
                label,
                *(f"{size / 1e6:.2f}" for size in entry["bytes"].values()),
                *(
                    f"{entry['serving']['latency_ms'][m][k]:.2f}" if "latency_ms" in entry["serving"] else "not run"
                    for m in modalities
                    for k in (tokens[0], tokens[-1])
                ),
            ]
            for label, entry in found.items()
        ],
    )
    quality = markdown_table(
        [
            "precision",
            "median cosine",
            "smallest",
            "max abs",
            "top-1 agreement",
            "separated",
            "Recall@10, points",
            "95 % bound",
            "rows apart",
            "gate",
        ],
        [
            [
                label,
                f"{entry['quality']['median_cosine']:.6f}",
                f"{entry['quality']['min_cosine']:.6f}",
                f"{entry['quality']['max_abs']:.1e}",
                f"{100 * entry['quality']['top1']:.1f} %",
                f"{entry['quality']['separated']} of {entry['quality']['queries']}",
                f"{0.0 - 100 * entry['quality']['recall_loss']:+.2f}",
                f"{0.0 - 100 * entry['quality']['recall_bound']:+.2f}",
                f"{max(entry['quality']['rows'].values()):.0e}",
                "; ".join(entry["quality"]["gate"]) or "holds",
            ]
            for label, entry in found.items()
        ],
    )
    parity = markdown_table(
        ["precision", "modality", "k", "max abs", "mean abs", "1 - min cosine", "tokens", "prefix", "rows", "top-1"],
        [
            [
                label,
                report["modality"],
                report["k"],
                *(f"{d[name]:.1e}" for name in ("max_abs", "mean_abs")),
                f"{1 - d['min_cosine']:.1e}",
                *(f"{d[name]:.1e}" for name in ("tokens", "prefix", "rows")),
                f"{d['top1']:.3f}",
            ]
            for label, entry in found.items()
            for report in entry["parity"]
            if report["k"] in (1, int(tokens[-1]))
            for d in [report["difference"]]
        ],
    )
    engines = markdown_table(
        ["engine", "MB", "seconds"],
        [[e["name"], f"{e['bytes'] / 1e6:.1f}", f"{e['seconds']:.1f}"] for e in results.get("engines", [])],
    )
    noise = markdown_table(
        ["graph", "noise of an embedding, by threads", "of tokens", "promise", "of tokens", "float64"],
        [
            [
                modality,
                ", ".join(f"{count}: {value:.1e}" for count, value in entry["threads"].items()) or "not measured",
                "" if entry["tokens"] is None else f"{entry['tokens']:.1e}",
                f"{entry['promise']:.1e}",
                f"{entry['token_promise']:.1e}",
                entry["no_reference"] or "is the reference",
            ]
            for modality, entry in results["float32"].items()
        ],
    )
    return [sizes, noise, quality, parity, *([engines] if "engines" in results else [])]


def _compile(bundle: Bundle, compute_capability: str) -> list[dict[str, Any]]:
    from fluxtalk.devices.tensorrt_api import load_tensorrt
    from fluxtalk.export.to_tensorrt.compile import build_engine
    from fluxtalk.export.to_tensorrt.job import builder_options, compile_job, default_precisions
    from fluxtalk.export.to_tensorrt.profiles import profiles_of

    api = load_tensorrt("rtx")
    target = builder_options(api, [compute_capability])
    profiles = profiles_of(bundle, list(bundle.manifest.modalities), [])
    found = []
    for modality in bundle.manifest.modalities:
        for precision in default_precisions(bundle):
            start = time.perf_counter()
            build_engine(api, compile_job(bundle, modality, precision, profiles[modality]), target, bundle.engines)
            seconds = round(time.perf_counter() - start, 1)
            record = max(read_engines(bundle.engines), key=lambda record: record.built_at)
            found.append({"name": record.file, "bytes": record.engine_bytes, "seconds": seconds})
    return found


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    main()
