"""ONNX Runtime against OpenVINO on this processor, by precision, encoder, batch and length.

``python -m bench.latency.backends``: encoders of the demo's size, a text encoder of MiniLM-L6's size and ViT-S/16, each
under a register head, with random weights (time does not depend on them). All sessions take turns, and the medians of
one machine and run are comparable with each other, not with another machine's: quote the ratios. Ratios are of the
processor's time, which other programs disturb least; time by the clock is written down beside it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from bench.gpu.models import VOCABULARY, TextTransformer
from bench.latency.vit import vit_small
from bench.machine import processor
from bench.markdown import markdown_table
from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.export.graph.to_onnx import export_onnx, graph_files
from fluxtalk.export.precision.convert import convert
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder, SmallImageEncoder, SmallTextEncoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import ImagePreprocessor, Preprocessor, TextPreprocessor
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.openvino_session import OpenVinoSession
from fluxtalk.runtime.backends.session import Session
from fluxtalk.scoring.parity import embedding_difference

TOKENS = 4
_PRECISIONS = {"fp32": "", "fp16": "", "bf16": "", "int8": "static"}
"""Precision to the method of `convert` that makes it."""
_BASE = "ort-cpu fp32"
_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True)
class Subject:
    """An encoder under a head, and the shapes it is timed in."""

    name: str
    encoder: nn.Module
    preprocess: Preprocessor
    feature_dim: int
    head_dim: int
    lengths: tuple[int, ...]
    """Text lengths; images have the one length 0."""
    vocabulary: int = 0

    def batch(self, rows: int, length: int, seed: int = 0) -> Arrays:
        """A random batch without padding; without ``token_index``."""
        rng = np.random.default_rng([seed, rows, length])
        if isinstance(self.preprocess, ImagePreprocessor):
            p = self.preprocess
            return {"pixels": rng.integers(0, 256, (rows, p.height, p.width, p.channels), dtype=np.uint8)}
        ids = rng.integers(1, self.vocabulary, (rows, length))
        return {"input_ids": ids, "mask": np.ones((rows, length), dtype=bool)}


def subjects() -> Iterator[Subject]:
    """Encoders to measure, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gray = ImagePreprocessor(32, 32, channels=1, mean=(0.5,), std=(0.5,))
        yield Subject("demo image", SmallImageEncoder(), gray, 128, 128, (0,))
        yield Subject("demo text", SmallTextEncoder(2000), _text(32), 128, 128, (8,), 2000)
        large = TextTransformer(longest=256)
        yield Subject("text 6 x 384", large, _text(256), 384, 512, (16, 64, 256), VOCABULARY)
        yield Subject("ViT-S/16", vit_small(), ImagePreprocessor(224, 224), 384, 512, (0,))


@click.command()
@option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of one operator.")
@option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds for each encoder, batch and length.",
)
@click.option(
    "-o", "--output", default="bench/results/backends.json", type=click.Path(path_type=Path), show_default=True
)
@debug_option
@sentence_errors
def main(threads: int, seconds: float, output: Path) -> None:
    """Measure in some minutes, and write OUTPUT."""
    results: dict[str, Any] = {
        "machine": f"{processor()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)} used",
        "load_average_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "rows": [],
    }
    for subject in subjects():
        with tempfile.TemporaryDirectory() as folder, opened(subject, Path(folder), threads) as sessions:
            for length in subject.lengths:
                for batch in (1, 8):
                    results["rows"].append(measure(subject, sessions, batch, length, seconds))
                    click.echo(line(results["rows"][-1]))
    write_json(output, results)
    click.echo(f"{results['machine']}, load {results['load_average_before']} before\n\n{table(results)}\n{output}")


@contextmanager
def opened(subject: Subject, folder: Path, threads: int) -> Iterator[dict[str, Session]]:
    """Every backend's session in every precision that it runs, by ``BACKEND PRECISION``."""
    head = RegisterTokenModule({"m": subject.feature_dim}, dim=subject.head_dim, num_register_tokens=TOKENS)
    embedder = EagerEmbedder(FrozenEncoder(subject.encoder, subject.preprocess, subject.feature_dim), head, "m")
    calibration = [subject.batch(4, length, seed) for seed in range(4) for length in subject.lengths]
    # What `nn.TransformerEncoder` does in one call without gradients cannot be exported.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        graph = export_onnx(embedder, subject.preprocess, subject.batch(2, 3))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    sessions: dict[str, Session] = {}
    try:
        for precision, method in _PRECISIONS.items():
            name = f"{precision}.onnx"
            graph_files(convert(graph, precision, method, calibration), folder, name)
            if precision != "bf16":
                sessions[f"ort-cpu {precision}"] = OnnxRuntimeSession(folder / name, "ort-cpu", threads, precision)
            sessions[f"openvino {precision}"] = OpenVinoSession(folder / name, threads, precision)
        yield sessions
    finally:
        for session in sessions.values():
            session.close()


def measure(
    subject: Subject, sessions: Mapping[str, Session], batch: int, length: int, seconds: float
) -> dict[str, Any]:
    """Median milliseconds of each session on one batch, and how far it is from ONNX Runtime in float32."""
    inputs = subject.batch(batch, length, seed=99)
    found = {name: session.run(inputs, TOKENS)["embeddings"] for name, session in sessions.items()}
    cosines = {name: embedding_difference(array, found[_BASE]).min_cosine for name, array in found.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    clock: dict[str, list[float]] = {name: [] for name in sessions}
    ends = time.perf_counter() + seconds
    while len(times[_BASE]) < 5 or (time.perf_counter() < ends and len(times[_BASE]) < 500):
        for name, session in sessions.items():
            session.run(inputs, TOKENS)  # another's weights are in the processor's caches
            started, used = time.perf_counter(), time.process_time()
            session.run(inputs, TOKENS)
            times[name].append(1e3 * (time.process_time() - used))
            clock[name].append(1e3 * (time.perf_counter() - started))
    return {
        "encoder": subject.name,
        "batch": batch,
        "length": length,
        "rounds": len(times[_BASE]),
        "processor_ms": {name: round(statistics.median(found), 4) for name, found in times.items()},
        "clock_ms": {name: round(statistics.median(found), 4) for name, found in clock.items()},
        "one_minus_min_cosine": {name: float(f"{max(0.0, 1 - cosine):.1e}") for name, cosine in cosines.items()},
    }


def line(row: Mapping[str, Any]) -> str:
    """One row, for people."""
    times = "  ".join(f"{name} {value:.2f}" for name, value in row["processor_ms"].items())
    return f"{row['encoder']}, batch {row['batch']}, length {row['length']} ({row['rounds']} rounds): {times}"


def table(results: Mapping[str, Any]) -> str:
    """Speed relative to ONNX Runtime in float32: the table of docs/backends.md."""
    names = [name for name in results["rows"][0]["processor_ms"] if name != _BASE]
    rows = []
    for row in results["rows"]:
        times = row["processor_ms"]
        shape = f"batch {row['batch']}" + (f", length {row['length']}" if row["length"] else "")
        ratios = (f"{times[_BASE] / times[name]:.2f}" for name in names)
        rows.append([f"{row['encoder']}, {shape}", f"{times[_BASE]:.2f}", *ratios])
    return markdown_table(["", f"{_BASE}, ms", *names], rows)


def _text(longest: int) -> TextPreprocessor:
    """Preprocessor whose tokenizer is never used: batches are made of token ids."""
    return TextPreprocessor(Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).to_str(), longest)


if __name__ == "__main__":
    main()
