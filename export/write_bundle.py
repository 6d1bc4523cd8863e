"""From a training run to a bundle on disk, parity proved before it appears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts import atomic_folder, hash_file, write_atomically
from fluxtalk.bundle import OUTPUTS, TOKEN_INDEX, Bundle, Manifest, ModalityEntry, read_bundle, write_manifest
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BundleError, DataError
from fluxtalk.export.to_onnx import DEFAULT_OPSET, export_onnx
from fluxtalk.model.run import TrainedRun
from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.golden import ParityReport, compare, golden_bytes, padding_room
from fluxtalk.runtime.session_onnxruntime import OnnxRuntimeSession

GOLDEN = "golden.safetensors"
_GOLDEN_ITEMS = 8
_EXPORT_TOLERANCE = 1e-6
"""On the machine that exports: the graph and eager PyTorch share the processor."""

Say = Callable[[str], None]
Arrays = dict[str, NDArray[Any]]


def write_bundle(
    run: TrainedRun, dataset: PairDataset, output: Path, opset: int = DEFAULT_OPSET, say: Say = lambda _: None
) -> tuple[Bundle, list[ParityReport]]:
    """Export every modality of a run, and prove each graph against eager PyTorch.

    Args:
        run: with its best head.
        dataset: gives the golden inputs, from its validation split.
        output: the bundle's folder; it must not exist, or be empty.
        say: told what happens.

    Raises:
        BundleError: the folder is in the way.
        DataError: the data set lacks a modality or has too few items.
        ParityError: a graph differs from eager PyTorch; nothing is left behind.
    """
    inputs: dict[str, Arrays] = {}
    outputs: dict[str, Arrays] = {}
    entries: dict[str, ModalityEntry] = {}
    reports: list[ParityReport] = []
    with atomic_folder(output, BundleError) as folder:
        for modality, part in run.stage1.modalities.items():
            say(f"exporting {modality} ({part.spec.source})")
            embedder = run.embedder(modality)
            batch = sample_batch(part.preprocess, _golden_items(dataset, modality))
            graph = f"{modality}.onnx"
            write_atomically(folder / graph, export_onnx(embedder, part.preprocess, batch, opset))
            tokens, embeddings = embedder.embed_arrays(batch, run.head.config.num_register_tokens)
            inputs[modality], outputs[modality] = batch, dict(zip(OUTPUTS, (tokens, embeddings), strict=True))
            session = OnnxRuntimeSession(folder / graph)
            room = padding_room(part.preprocess.to_parts()[0], batch)
            report = compare(modality, session, batch, outputs[modality], _EXPORT_TOLERANCE, room)
            session.close()
            say(report.line())
            report.require()
            reports.append(report)
            entries[modality] = _entry(folder, modality, graph, part.preprocess)
        write_atomically(folder / GOLDEN, golden_bytes(inputs, outputs))
        write_manifest(folder, _manifest(run, folder, entries, opset))
    return read_bundle(output), reports


def sample_batch(preprocess: Preprocessor, items: Sequence[Any]) -> Arrays:
    """Preprocess raw items into one batch."""
    return preprocess.collate([preprocess.prepare(item) for item in items])


def _golden_items(dataset: PairDataset, modality: str) -> list[Any]:
    """A few counted items of the validation split, evenly spread."""
    split = dataset.split("validation")
    if modality not in split.items:
        raise DataError(
            f"{dataset.name} has {', '.join(split.items)} and no {modality}, which the run embeds; give other --data."
        )
    rows = np.flatnonzero(split.items[modality].counted)
    if len(rows) < 2:
        raise DataError(
            f"{dataset.name} has {len(rows)} validation items of {modality}; golden vectors need at least 2."
        )
    chosen = rows[np.linspace(0, len(rows) - 1, min(_GOLDEN_ITEMS, len(rows))).astype(int)]
    return [split.items[modality].values[row] for row in chosen]


def _entry(folder: Path, modality: str, graph: str, preprocess: Preprocessor) -> ModalityEntry:
    config, files = preprocess.to_parts()
    names = {name: f"{modality}.{name}" for name in files}
    for name, content in files.items():
        write_atomically(folder / names[name], content)
    return ModalityEntry(graph, [*preprocess.input_names, TOKEN_INDEX], config, names)


def _manifest(run: TrainedRun, folder: Path, entries: dict[str, ModalityEntry], opset: int) -> Manifest:
    config = run.head.config
    training: dict[str, Any] = {
        "data": run.config["facts"]["data"],
        "aggregation": config.aggregation,
        **run.head.progress,
    }
    if run.results is not None:
        training["test_recall"] = run.results["recall"]
    return Manifest(
        num_register_tokens=config.num_register_tokens,
        num_overlapping_tokens=config.num_overlapping_tokens,
        dim=config.dim,
        opset=opset,
        precision="fp32",
        modalities=entries,
        files={path.name: hash_file(path) for path in sorted(folder.iterdir())},
        golden=GOLDEN,
        stage1_hash=run.head.stage1_hash,
        identity=run.head.identity.fields(),
        training=training,
    )
