"""One modality of a run in float32: its graph, and its golden vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import DataError
from fluxtalk.export.graph.to_onnx import export_onnx
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.precision.precision import Batches
from fluxtalk.model.checkpoints.run import TrainedRun
from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.golden import hard_cases, padding_room

_GOLDEN_ITEMS = 64
_CALIBRATION_ITEMS = 128
_CALIBRATION_BATCH = 8

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TracedModality:
    """What `trace` gives."""

    model: onnx.ModelProto
    preprocess: Preprocessor
    inputs: Arrays
    outputs: Arrays
    """The golden inputs, and what eager PyTorch made of them."""
    calibration: Batches
    """Batches of training items, where int8 needs them."""

    @property
    def room(self) -> int:
        """By how much the golden batch may be padded further."""
        return padding_room(self.preprocess.to_parts()[0], self.inputs)


def trace(run: TrainedRun, dataset: PairDataset, modality: str, tokens: int, options: ExportOptions) -> TracedModality:
    """Trace a modality, and compute its golden outputs eagerly.

    Args:
        tokens: how many register tokens are kept.

    Raises:
        DataError: the data set lacks the modality or has too few items.
        UsageError: the encoder cannot be exported.
    """
    part = run.stage1.modalities[modality]
    embedder = run.embedder(modality, tokens)
    items = spread_items(dataset, modality, "validation", _GOLDEN_ITEMS)
    inputs = hard_cases(sample_batch(part.preprocess, items))
    model = export_onnx(embedder, part.preprocess, inputs, options.opset, options.attention)
    outputs = dict(zip(OUTPUTS, embedder.embed_arrays(inputs, tokens), strict=True))
    calibration: Batches = ()
    if "int8" in options.precisions:
        values = spread_items(dataset, modality, "train", _CALIBRATION_ITEMS)
        calibration = [
            sample_batch(part.preprocess, values[start : start + _CALIBRATION_BATCH])
            for start in range(0, len(values), _CALIBRATION_BATCH)
        ]
    return TracedModality(model, part.preprocess, inputs, outputs, calibration)


def sample_batch(preprocess: Preprocessor, items: Sequence[Any]) -> Arrays:
    """Preprocess raw items into one batch."""
    return preprocess.collate([preprocess.prepare(item) for item in items])


def spread_items(dataset: PairDataset, modality: str, split: str, count: int) -> list[Any]:
    """Up to ``count`` counted items of a split, evenly spread.

    Raises:
        DataError: there are fewer than two.
    """
    part = dataset.split(split)
    if modality not in part.items:
        raise DataError(
            f"{dataset.name} has {', '.join(part.items)} and no {modality}, which the run embeds; give other --data."
        )
    items = part.items[modality]
    rows = np.flatnonzero(items.counted)
    if len(rows) < 2:
        raise DataError(f"{dataset.name} has {len(rows)} {split} items of {modality}; export needs at least 2 of them.")
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    return [items.values[row] for row in chosen.tolist()]
