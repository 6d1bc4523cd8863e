"""Cost of the exported head, with plain and with absorbed cross-attention: multiply-adds, time beside an encoder.

``python -m bench.latency.head``: a head of width 512 with 8 heads and 4 tokens on features of dimension 384, cut out of
the graph that `fluxtalk-export` writes; and ViT-S/16, which gives 197 of such features, in float32 on the same session
settings. Times of one run are comparable with each other, not with another machine's: quote the ratios.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch

from bench.latency.graphs import cut, multiply_adds, zeros
from bench.latency.vit import vit_small
from bench.machine import processor
from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import FEATURES, OUTPUTS, TOKEN_INDEX
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, sentence_errors
from fluxtalk.export.graph.graph_tools import fold_constants
from fluxtalk.export.graph.to_onnx import export_onnx, graph_files
from fluxtalk.export.options import DEFAULT_OPSET
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder, GivenFeatures
from fluxtalk.model.head.registers import RegisterBlock, RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor, ImagePreprocessor
from fluxtalk.runtime.backends.onnxruntime_session import import_onnxruntime
from fluxtalk.runtime.backends.threads import available_cores

_DIM, _HEADS, _TOKENS, _FEATURES, _PIXELS = 512, 8, 4, 384, 224
_SIZES = ((1, 197), (8, 197), (32, 64))
"""Batch and length."""
_KS = (1, 4)
_ENCODED = (1, 8)
"""Batches of pictures that the encoder is timed on."""
_ROUNDS = 30


@click.command()
@click.option("-o", "--output", default="bench/results/head.json", type=click.Path(path_type=Path), show_default=True)
@debug_option
@sentence_errors
def main(output: Path) -> None:
    """Measure in about two minutes, and write OUTPUT."""
    results: dict[str, Any] = {
        "machine": f"{processor()}, {available_cores()} cores, 1 thread used",
        "load_average_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "versions": {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        "head": {"dim": _DIM, "heads": _HEADS, "tokens": _TOKENS, "feature_dim": _FEATURES},
    }
    heads = {form: exported_head(form) for form in ("plain", "absorbed")}
    results["multiply_adds"] = {size: counted(heads, *size_of) for size, size_of in _named_sizes()}
    with tempfile.TemporaryDirectory() as folder:
        results["milliseconds"] = timed(heads, Path(folder))
    write_json(output, results)
    for line in lines(results):
        click.echo(line)
    click.echo(f"{output}")


def exported_head(form: str) -> onnx.ModelProto:
    """The graph between encoder and outputs, its first cross-attention in one form."""
    torch.manual_seed(0)
    head = RegisterTokenModule({"features": _FEATURES}, dim=_DIM, num_register_tokens=_TOKENS, heads=_HEADS)
    for block in head.blocks:
        assert isinstance(block, RegisterBlock)
        block.cross_attention.form = form
    preprocess = FeaturesPreprocessor(_FEATURES)
    sample: Arrays = {"features": np.zeros((2, 3, _FEATURES), np.float32), "mask": np.ones((2, 3), bool)}
    encoder = FrozenEncoder(GivenFeatures(), preprocess, _FEATURES)
    return cut(export_onnx(EagerEmbedder(encoder, head, "features"), preprocess, sample), [FEATURES], OUTPUTS)


def exported_encoder(batch: int) -> onnx.ModelProto:
    """ViT-S/16 from uint8 pictures to features, for one batch size."""
    encoder = FrozenEncoder(vit_small(), ImagePreprocessor(_PIXELS, _PIXELS), _FEATURES)
    pixels = torch.zeros(batch, _PIXELS, _PIXELS, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        encoder,
        (pixels,),
        dynamo=True,
        opset_version=DEFAULT_OPSET,
        input_names=["pixels"],
        output_names=[FEATURES, "mask"],
        verbose=False,
    )
    assert program is not None
    return cut(fold_constants(program.model_proto), [], [FEATURES])


def counted(heads: Mapping[str, onnx.ModelProto], batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Multiply-adds by k: of the whole head, and of its cross-attention, in both forms."""
    found = {}
    for k in _KS:
        whole = {form: multiply_adds(model, batch=batch, length=length, k=k) for form, model in heads.items()}
        # Feed-forward (8 D^2 for a token), output (D^2) and the means of all prefixes are the same in both.
        rest = batch * (k * 9 * _DIM**2 + k**2 * _DIM)
        cross = {form: count - rest for form, count in whole.items()}
        found[f"k={k}"] = {
            "cross_attention": {**cross, "times_fewer": round(cross["plain"] / cross["absorbed"], 2)},
            "head": {**whole, "times_fewer": round(whole["plain"] / whole["absorbed"], 2)},
        }
    return found


def timed(heads: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, Any]:
    """Milliseconds of heads and encoder, all taking turns, so that a change of the machine's speed meets all."""
    calls: dict[str, Callable[[], Any]] = {}
    for form, model in heads.items():
        session = _session(model, folder, f"{form}.onnx")
        for size, (batch, length) in _named_sizes():
            for k in _KS:
                inputs = _inputs(model, batch, length, k)
                calls[f"{size} k={k} {form}"] = lambda s=session, x=inputs: s.run(OUTPUTS, x)  # type: ignore[misc]
    for batch in _ENCODED:
        encoder = exported_encoder(batch)
        session = _session(encoder, folder, f"encoder{batch}.onnx")
        pixels = zeros(encoder, {})
        calls[f"encoder {batch}"] = lambda s=session, x=pixels: s.run([FEATURES], x)  # type: ignore[misc]
    medians = _medians(calls)
    found: dict[str, Any] = {f"vit-s/16 of batch {batch}": round(medians[f"encoder {batch}"], 2) for batch in _ENCODED}
    for size, (batch, length) in _named_sizes():
        for k in _KS:
            plain, absorbed = (medians[f"{size} k={k} {form}"] for form in ("plain", "absorbed"))
            row = {"plain": round(plain, 3), "absorbed": round(absorbed, 3), "times_faster": round(plain / absorbed, 2)}
            if batch in _ENCODED and length == 197:
                row["absorbed_share_of_encoder"] = round(absorbed / medians[f"encoder {batch}"], 4)
            found.setdefault(size, {})[f"k={k}"] = row
    return found


def lines(results: Mapping[str, Any]) -> list[str]:
    """The results for people."""
    found = [f"{results['machine']}, load {results['load_average_before']} before"]
    for size, by_k in results["multiply_adds"].items():
        for k, row in by_k.items():
            cross, whole = row["cross_attention"], row["head"]
            times = results["milliseconds"][size][k]
            share = times.get("absorbed_share_of_encoder")
            found.append(
                f"{size:>8} {k}: cross-attention {cross['plain'] / 1e6:.1f} to {cross['absorbed'] / 1e6:.1f} million "
                f"multiply-adds ({cross['times_fewer']} times fewer), head {whole['plain'] / 1e6:.1f} to "
                f"{whole['absorbed'] / 1e6:.1f} ({whole['times_fewer']}); {times['plain']} to {times['absorbed']} ms"
                + (f", {100 * share:.2f} % of ViT-S/16" if share is not None else "")
            )
    return found


def _named_sizes() -> list[tuple[str, tuple[int, int]]]:
    return [(f"{batch} x {length}", (batch, length)) for batch, length in _SIZES]


def _session(model: onnx.ModelProto, folder: Path, name: str) -> Any:
    """Open a part of a graph in ONNX Runtime with the settings of `OnnxRuntimeSession` on one thread."""
    graph_files(model, folder, name)
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return ort.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])


def _inputs(model: onnx.ModelProto, batch: int, length: int, k: int) -> Arrays:
    arrays = zeros(model, {"batch": batch, "length": length, "k": k})
    arrays[FEATURES] = np.random.default_rng(0).standard_normal(arrays[FEATURES].shape, dtype=np.float32)
    return {**arrays, TOKEN_INDEX: np.arange(k)}


def _medians(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(_ROUNDS + 1):
        for name, call in calls.items():
            # Behind another call, so that the weights are as far from the cores as they are behind an encoder.
            started = time.perf_counter()
            call()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
