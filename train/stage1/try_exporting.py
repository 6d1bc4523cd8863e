"""Trial of what an export needs of an encoder: the same features every time, rows apart, and a graph."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxtalk.errors import InputError, UsageError, reason
from fluxtalk.model.encoders import Features, FrozenEncoder, describe_error, to_tensors
from fluxtalk.model.encoders.base import HALF, features_and_mask
from fluxtalk.model.tracing import (
    example_inputs,
    exporting,
    random_operators,
    random_refusal,
    refusal,
)
from fluxtalk.preprocess import AudioPreprocessor, ImagePreprocessor, Preprocessor, TextPreprocessor

_SAME = 1e-3
"""Largest difference of features, relative to the largest, that rounding explains: float32 of a deep network, or more
where features are rounded to half precision. What depends on its neighbors or on padding differs by far more."""
_PADDING = 5
"""Positions by which a row is padded."""
_OPSET = 20


def try_exporting(name: str, source: str, encoder: FrozenEncoder, preprocess: Preprocessor) -> None:
    """Refuse an encoder whose export would fail, before anybody trains on it.

    Args:
        name: the modality.
        source: the specification that the encoder was built from.

    Raises:
        UsageError: its features differ from run to run, or with the other rows of a batch, or with padding; it draws
            random numbers; or it cannot be traced, or its graph does not run.
    """
    items = _items(preprocess)
    batch = preprocess.collate(items)
    what = f"The encoder of {name} ({source})"
    with torch.no_grad():
        # Its dtype is that of what it returns, before features become float32.
        bound = _bound(encoder, batch)
        together = _run(what, encoder, preprocess, items)
        _require_same_again(what, together, _run(what, encoder, preprocess, items))
        for row, item in enumerate(items):
            alone = _run(what, encoder, preprocess, [item])
            _require_apart(what, _row(together, row), _row(alone, 0), bound, "in a batch with others than alone")
        if "mask" in batch:
            padded = {key: np.pad(array, _beyond(array)) for key, array in preprocess.collate(items[:1]).items()}
            if _fits(preprocess, padded):
                found = encoder(*to_tensors(padded))
                _require_apart(what, _row(together, 0), _row(found, 0), bound, "padded than without")
    _require_graph(name, encoder, preprocess, batch, bound)


class _Plain(nn.Module):
    """The frozen encoder with a plain tuple of outputs."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        features, mask = self.encoder(*inputs)
        return features, mask


def _require_graph(name: str, encoder: FrozenEncoder, preprocess: Preprocessor, batch: Any, bound: float) -> None:
    """Trace the encoder as the export does; with ONNX installed convert it, and with ONNX Runtime run it too."""
    arguments, shapes = example_inputs(preprocess, batch, name)
    traced = _Plain(encoder).eval()
    try:
        with exporting() as report, torch.no_grad():
            if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None:
                exported = torch.export.export(traced, tuple(arguments), dynamic_shapes={"inputs": tuple(shapes)})
                model = None
            else:
                program = torch.onnx.export(
                    traced,
                    tuple(arguments),
                    dynamo=True,
                    opset_version=_OPSET,
                    input_names=list(preprocess.input_names),
                    dynamic_shapes={"inputs": tuple(shapes)},
                    verbose=False,
                )
                assert program is not None
                assert program.exported_program is not None
                exported, model = program.exported_program, program.model_proto
    except Exception as error:  # torch.export raises its own, the user's and plain ones
        error.add_note(report.getvalue().strip() or "The exporter printed nothing.")
        raise UsageError(refusal(name, error)) from error
    random = random_operators(exported)
    if random:
        raise UsageError(random_refusal(name, random))
    if model is not None and importlib.util.find_spec("onnxruntime") is not None:
        row = {key: array[:1] for key, array in batch.items()}
        longer = {key: np.pad(array, _beyond(array)) for key, array in row.items()} if "mask" in batch else row
        for part in (row, longer) if longer is not row and _fits(preprocess, longer) else (row,):
            _require_run(name, model, encoder, part, bound)


def _require_run(name: str, model: Any, encoder: FrozenEncoder, part: Any, bound: float) -> None:
    """Run the graph on one row, of sizes that it was not traced with, and compare it with the encoder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}
        features, mask = session.run(None, {key: array for key, array in part.items() if key in wanted})
    except Exception as error:  # ONNX Runtime's exceptions have no public base
        raise UsageError(
            f"The {name} encoder can be exported, and its graph does not run on {_shapes(part)} "
            f"({reason(error)[-300:]}); write it without sizes as numbers, without loops over positions, and with "
            "standard operators."
        ) from error
    with torch.no_grad():
        expected = encoder(*to_tensors(part))
    found = Features(torch.from_numpy(features), torch.from_numpy(mask))
    _require_apart(
        f"The encoder of {name}", _row(expected, 0), _row(found, 0), bound, "in ONNX Runtime than in PyTorch"
    )


def _run(what: str, encoder: FrozenEncoder, preprocess: Preprocessor, items: Sequence[NDArray[Any]]) -> Features:
    try:
        found: Features = encoder(*to_tensors(preprocess.collate(items)))
    except Exception as error:  # a user's code may raise anything
        raise UsageError(
            f"{what} fails on a batch of {len(items)}: {describe_error(error)}; correct it; --debug shows where."
        ) from error
    return found


def _require_same_again(what: str, first: Features, second: Features) -> None:
    if first.features_BLD.shape != second.features_BLD.shape or not torch.allclose(
        first.features_BLD, second.features_BLD, rtol=1e-5, atol=1e-6, equal_nan=True
    ):
        raise UsageError(
            f"{what} gives other features for the same input each time; draw random numbers only if self.training, or "
            "take the draw out."
        )


def _require_apart(what: str, expected: Tensor, found: Tensor, bound: float, how: str) -> None:
    """Refuse features (L, D) that are not the same; ``how`` says what was different about the second run."""
    if expected.shape == found.shape:
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        apart = float((expected - found).abs().max()) if expected.numel() else 0.0
        if apart <= bound * max(scale, 1e-6):
            return
        came = f"features up to {apart:.1e} apart, of {scale:.1e}"
    else:
        came = f"{len(found)} features and not {len(expected)}"
    raise UsageError(
        f"{what} gives an item other features {how} ({came}); they may depend on nothing but the item: take out "
        "statistics over the batch or over padding, and use the mask."
    )


def _bound(encoder: FrozenEncoder, batch: Any) -> float:
    features, _ = features_and_mask(encoder.run(*to_tensors(batch)))
    return max(_SAME, 4 * torch.finfo(features.dtype).eps) if features.dtype in HALF else _SAME


def _row(features: Features, row: int) -> Tensor:
    """Features of a row that are not padding: (L, D)."""
    return features.features_BLD[row][features.mask_BL[row]]


def _shapes(part: Any) -> str:
    return ", ".join(f"{key} {'x'.join(map(str, array.shape))}" for key, array in part.items())


def _beyond(array: NDArray[Any]) -> list[tuple[int, int]]:
    return [(0, 0), (0, _PADDING)] + [(0, 0)] * (array.ndim - 2)


def _fits(preprocess: Preprocessor, padded: Any) -> bool:
    limit = getattr(preprocess, "max_length", None)
    return limit is None or padded["mask"].shape[1] <= limit


def _items(preprocess: Preprocessor) -> list[NDArray[Any]]:
    """Three different items, of different lengths where inputs have one."""
    rng = np.random.default_rng(0)
    if isinstance(preprocess, ImagePreprocessor):
        shape = (3, preprocess.height, preprocess.width, preprocess.channels)
        return list(rng.integers(0, 256, shape).astype(np.uint8))
    if isinstance(preprocess, AudioPreprocessor):
        seconds = (1.0, 0.75, 1.25)
        rate = preprocess.sample_rate
        return [
            preprocess.prepare((0.1 * rng.standard_normal(int(part * rate)).astype(np.float32), rate))
            for part in seconds
        ]
    assert isinstance(preprocess, TextPreprocessor)
    return _texts(preprocess)


def _texts(preprocess: TextPreprocessor) -> list[NDArray[Any]]:
    """Token ids of words of the tokenizer's own vocabulary, as many as fit."""
    words = sorted(word for word in preprocess.tokenizer.get_vocab() if word.isalpha())[::7] or ["probe"]
    items = []
    for start, count in ((0, 3), (5, 1), (11, 6)):
        text = " ".join(words[(start + place) % len(words)] for place in range(count))
        try:
            items.append(preprocess.prepare(text))
        except InputError:
            ids = [(start + place) % preprocess.tokenizer.get_vocab_size() for place in range(count)]
            items.append(np.array(ids, dtype=np.int64))
    return [ids[: preprocess.max_length] for ids in items]
