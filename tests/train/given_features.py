"""Data of given feature arrays and its stage 1: what a cache holds is then known exactly."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Items, PairDataset, Split
from fluxtalk.model.encoders import EncoderSpec
from fluxtalk.model.stage1 import Stage1, Stage1Modality
from fluxtalk.preprocess import FeaturesPreprocessor

CPU = torch.device("cpu")
DIM = 6
Arrays = list[NDArray[np.float32]]


def ragged(count: int = 40, seed: int = 0) -> Arrays:
    """Arrays of 1 to 7 vectors that half precision holds exactly."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((1 + i % 7, DIM)).astype(np.float16).astype(np.float32) for i in range(count)]


def given(values: Arrays, source: str = f"features:{DIM}", name: str = "train") -> tuple[Stage1, PairDataset]:
    """A stage 1 that passes features through (or through ``source``), and data of one modality, ``sound``."""
    groups = np.arange(len(values))
    items = Items(values, groups, np.ones(len(values), dtype=bool))
    split = Split(name, tuple(f"id {i}" for i in groups), {"sound": items}, np.zeros(len(values), dtype=bool))
    part = Stage1Modality(EncoderSpec(source, {}, DIM), {}, FeaturesPreprocessor(DIM))
    return Stage1({"sound": part}), PairDataset("arrays", ("sound",), {name: split}, "hash")
