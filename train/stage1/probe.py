"""Trial runs of an encoder, when it is wrapped, on the extremes of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.errors import InputError, UsageError
from fluxtalk.model.encoders import FrozenEncoder, describe_error, to_tensors
from fluxtalk.model.encoders.base import features_and_mask
from fluxtalk.preprocess import (
    AudioPreprocessor,
    FeaturesPreprocessor,
    ImagePreprocessor,
    Preprocessor,
    TextPreprocessor,
)
from fluxtalk.train.stage1.try_exporting import try_exporting


@dataclass(frozen=True)
class _Trial:
    what: str
    """Name of the trial in a sentence, such as ``one image input``."""
    prepared: Sequence[NDArray[Any]]
    """A batch of inputs, preprocessed."""
    advice: str = "correct it; --debug shows where"


def probe(name: str, source: str, encoder: torch.nn.Module, preprocess: Preprocessor) -> int:
    """Run inputs through an encoder, to learn its feature dimension, and that it takes whatever it will be given.

    What an export needs is tried too, so that nobody trains a head for an hour to be refused then (`try_exporting`).

    Args:
        name: the modality.
        source: the specification that the encoder was built from.

    Returns:
        The dimension of its features.

    Raises:
        UsageError: it fails on an input, does not return features, or could not be exported.
    """
    if isinstance(preprocess, FeaturesPreprocessor):
        return preprocess.dim
    dim = 0
    for trial in _trials(preprocess):
        batch = to_tensors(preprocess.collate(trial.prepared))
        try:
            with torch.no_grad():
                if not dim:
                    dim = int(getattr(encoder, "dim", 0))
                if not dim:
                    features, _ = features_and_mask(FrozenEncoder(encoder, preprocess, 0).run(*batch))
                    dim = int(features.shape[-1])
                FrozenEncoder(encoder, preprocess, dim)(*batch)
        except Exception as error:  # a user's code may raise anything
            raise UsageError(
                f"The encoder of {name} ({source}) fails on {trial.what}: {describe_error(error)}; {trial.advice}."
            ) from error
    try_exporting(name, source, FrozenEncoder(encoder, preprocess, dim), preprocess)
    return dim


def _trials(preprocess: Preprocessor) -> list[_Trial]:
    if isinstance(preprocess, TextPreprocessor):
        return _texts(preprocess)
    if isinstance(preprocess, ImagePreprocessor):
        sample: Any = np.zeros((preprocess.height, preprocess.width), dtype=np.uint8)
    elif isinstance(preprocess, AudioPreprocessor):
        # One second, because some encoders need a few hundred samples for a single feature.
        sample = (np.zeros(preprocess.sample_rate, dtype=np.float32), preprocess.sample_rate)
    else:
        raise UsageError(f"There is no input to try {preprocess.kind} encoders on.")
    return [_Trial(f"one {preprocess.kind} input", [preprocess.prepare(sample)] * 2)]


def _texts(preprocess: TextPreprocessor) -> list[_Trial]:
    largest = max(preprocess.tokenizer.get_vocab(with_added_tokens=True).values())
    last = np.array([largest], dtype=np.int64)
    try:
        ids = preprocess.prepare("probe")
    except InputError:
        ids = last  # a tokenizer that does not know the word
    length = preprocess.max_length
    return [
        _Trial("one text input", [ids] * 2),
        _Trial(
            f"token {largest}, the largest that its tokenizer gives",
            [last] * 2,
            "give it at least as many embeddings as the tokenizer has tokens, or its own tokenizer",
        ),
        _Trial(
            f"a text of {length} tokens, its max_length", [np.resize(ids, length)], "give a max_length that it takes"
        ),
    ]
