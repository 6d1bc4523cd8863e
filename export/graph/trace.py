"""One modality of a run in float32: its graph, and its golden vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from fluxtalk.arrays import Array, Arrays
from fluxtalk.artifacts.bundle import TensorSpec
from fluxtalk.artifacts.golden import GoldenCase
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import DataError
from fluxtalk.export.graph.golden_cases import eager_outputs, longest_case, with_hard_rows
from fluxtalk.export.graph.layers import detach
from fluxtalk.export.graph.noise import measure_noise
from fluxtalk.export.graph.to_onnx import export_onnx, input_specs
from fluxtalk.export.options import DEFAULT_OPSET
from fluxtalk.model.checkpoints.trained_run import TrainedRun
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.preprocess import AudioPreprocessor, Preprocessor
from fluxtalk.runtime.verify import padding_room
from fluxtalk.scoring.noise import Float32Noise

_GOLDEN_ITEMS = 64
_CALIBRATION_ITEMS = 128
_CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class TracedModality:
    """One modality as ONNX, with the inputs that verify and calibrate it."""

    model: onnx.ModelProto
    preprocess: Preprocessor
    max_length: int | None
    """Length of the longest input that preprocessing gives; None if there is none."""
    golden: GoldenCase
    """Batch of golden inputs."""
    longest: GoldenCase | None
    """One row of the longest input, if there is one and no golden input is as long."""
    calibration: Sequence[Arrays]
    """Batches of training items; none unless they were asked for."""
    noise: Float32Noise
    """Noise of float32 on the golden inputs, and the promise of the float32 graph."""
    embedder: EagerEmbedder
    """The eager modality, by which a difference is traced to a module."""
    layers: Mapping[str, str]
    """Module of the embedder to the value of the graph that it ends with."""

    @property
    def inputs(self) -> list[TensorSpec]:
        """Inputs of the graph in order."""
        return input_specs(self.model)

    @property
    def room(self) -> int:
        """Positions by which the golden batch may be padded further."""
        return padding_room(self.max_length, self.golden.inputs)


def trace(
    run: TrainedRun,
    dataset: PairDataset,
    modality: str,
    tokens: int,
    opset: int = DEFAULT_OPSET,
    attention: bool = False,
    calibrate: bool = False,
) -> TracedModality:
    """Trace a modality and compute its golden outputs eagerly; the encoder is built once, here.

    Args:
        tokens: register tokens that are kept, from the first.
        attention: whether the graph also gives where each register looked.
        calibrate: whether batches of training items are needed.

    Raises:
        DataError: the data set lacks the modality or has too few items.
        ParityError: float32 itself is too far from float64 for any promise.
        UsageError: the encoder cannot be exported, draws random numbers, or does not run its longest input.
    """
    preprocess = run.stage1.modalities[modality].preprocess
    embedder = run.embedder(modality, tokens)
    items = spread_items(dataset, modality, "validation", _GOLDEN_ITEMS)
    inputs = with_hard_rows(sample_batch(preprocess, items), preprocess.fixed_length)
    max_length = _longest(preprocess)
    longest = longest_case(embedder, max_length, inputs, attention)
    noise = measure_noise(embedder, [inputs, *([longest.inputs] if longest is not None else [])])
    model = export_onnx(embedder, preprocess, inputs, opset, attention)
    layers = detach(model)
    return TracedModality(
        model=model,
        preprocess=preprocess,
        max_length=max_length,
        golden=GoldenCase(inputs, eager_outputs(embedder, inputs, attention)),
        longest=longest,
        calibration=_calibration(preprocess, dataset, modality) if calibrate else (),
        noise=noise,
        embedder=embedder,
        layers=layers,
    )


def _longest(preprocess: Preprocessor) -> int | None:
    """Length of the longest prepared item, or None: a limit in samples is not the length of a spectrogram."""
    if isinstance(preprocess, AudioPreprocessor):
        return preprocess.longest
    longest: int | None = preprocess.to_parts()[0].get("max_length")
    return longest


def sample_batch(preprocess: Preprocessor, items: Sequence[Any]) -> dict[str, Array]:
    """Preprocess raw items into one batch."""
    return preprocess.collate([preprocess.prepare(item) for item in items])


def spread_items(dataset: PairDataset, modality: str, split: str, count: int) -> list[Any]:
    """Take at most ``count`` counted items of a split, evenly spread.

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


def _calibration(preprocess: Preprocessor, dataset: PairDataset, modality: str) -> list[Arrays]:
    values = spread_items(dataset, modality, "train", _CALIBRATION_ITEMS)
    starts = range(0, len(values), _CALIBRATION_BATCH)
    return [sample_batch(preprocess, values[start : start + _CALIBRATION_BATCH]) for start in starts]
