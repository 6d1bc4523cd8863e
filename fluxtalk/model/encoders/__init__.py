"""Frozen encoders, one file per source, and the function that builds any of them.

In: a source and its options. Out: an `nn.Module` that gives features (batch, length, dim) and their mask.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from fluxtalk.errors import UsageError
from fluxtalk.model.encoders.base import HALF, EncoderSpec, Features, FrozenEncoder, GivenFeatures, to_tensors
from fluxtalk.model.encoders.failure import describe_error
from fluxtalk.model.encoders.hf_models import build_hf
from fluxtalk.model.encoders.open_clip_models import build_open_clip
from fluxtalk.model.encoders.small_image import SmallImageEncoder
from fluxtalk.model.encoders.small_text import SmallTextEncoder
from fluxtalk.model.encoders.timm_models import build_timm
from fluxtalk.preprocess import Preprocessor

__all__ = [
    "EncoderSpec",
    "Features",
    "FrozenEncoder",
    "GivenFeatures",
    "SmallImageEncoder",
    "SmallTextEncoder",
    "build_encoder",
    "describe_error",
    "to_tensors",
]

SOURCES = (
    "hf:NAME, timm:NAME, open_clip:NAME, st:NAME, module:PACKAGE.MODULE:FACTORY, features:DIM, small-image, small-text"
)


def build_encoder(
    source: str, options: Mapping[str, Any], folder: str | None = None, preprocess: Preprocessor | None = None
) -> nn.Module:
    """Build the encoder of a source, with weights as its constructor or factory leaves them.

    Weights in half precision become float32: what they hold is kept, and all arithmetic is in one type.

    Args:
        source: ``hf:NAME``, ``timm:NAME``, ``open_clip:NAME`` or ``st:NAME``, built by that library from the options
            alone; ``small-image``, ``small-text``, ``features:DIM``; or ``module:PACKAGE.MODULE:FACTORY``, which
            imports *installed* code and calls ``FACTORY(**options)``, which returns an `nn.Module`.
        folder: where the factory's module lies, if it is not installed.
        preprocess: its preprocessing, which a library's encoders of sound are built with.

    Raises:
        UsageError: the source is unknown, cannot be imported, does not take the options, or its factory fails.
        CheckpointError: the installed version of its library cannot build it.
    """
    encoder = _build(source, options, folder, preprocess)
    if any(tensor.dtype in HALF for tensor in encoder.state_dict().values()):
        encoder.float()
    return encoder


def _build(source: str, options: Mapping[str, Any], folder: str | None, preprocess: Preprocessor | None) -> nn.Module:
    kind, _, rest = source.partition(":")
    if kind in ("hf", "st") and rest:
        return build_hf(source, options, preprocess)
    if kind == "timm" and rest:
        return build_timm(source, options)
    if kind == "open_clip" and rest:
        return build_open_clip(source, options)
    if kind == "features" and rest.isdecimal() and int(rest) > 0:
        return GivenFeatures()
    if kind == "module" and rest.count(":") == 1:
        module, _, name = rest.partition(":")
        with _importable(folder):
            return _from_factory(source, module, name, options)
    sources: dict[str, type[nn.Module]] = {"small-image": SmallImageEncoder, "small-text": SmallTextEncoder}
    if source not in sources:
        raise UsageError(f"An encoder's source is {SOURCES}; got {source!r}.")
    try:
        return sources[source](**options)
    except TypeError as error:
        raise UsageError(f"The encoder {source} does not take these options: {error}.") from None


@contextlib.contextmanager
def _importable(folder: str | None) -> Iterator[None]:
    """Put a folder first on the import path for a while."""
    if folder is None:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _from_factory(source: str, module: str, name: str, options: Mapping[str, Any]) -> nn.Module:
    # A user's exception is chained, so that --debug shows where it was raised.
    try:
        factory = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UsageError(
            f"The encoder {source} cannot be imported ({describe_error(error)}); "
            "install its package or add its folder to PYTHONPATH."
        ) from error
    try:
        encoder = factory(**options)
    except Exception as error:
        if isinstance(error, TypeError) and error.__traceback__ is not None and error.__traceback__.tb_next is None:
            # Raised by the call itself: the factory did not run.
            raise UsageError(f"The encoder {source} does not take these options: {error}.") from error
        advice = "install what it imports" if isinstance(error, ImportError) else "correct it; --debug shows where"
        raise UsageError(f"The factory of {source} fails: {describe_error(error)}; {advice}.") from error
    if not isinstance(encoder, nn.Module):
        raise UsageError(
            f"The factory of {source} must return a torch.nn.Module; it returned {type(encoder).__name__}."
        )
    return encoder
