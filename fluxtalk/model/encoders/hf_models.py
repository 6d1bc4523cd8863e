"""`hf:`: encoders of the transformers library, built from their configuration."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fluxtalk.config import require
from fluxtalk.errors import CheckpointError, UsageError, reason
from fluxtalk.model.encoders.libraries import import_library
from fluxtalk.model.encoders.output_choice import OutputChoice
from fluxtalk.model.encoders.spectrogram_models import spectrogram_encoder
from fluxtalk.model.encoders.speech import SPEECH_MODELS, SpeechEncoder
from fluxtalk.preprocess import AudioPreprocessor, Preprocessor

_MODELS = "transformers.models."
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "distillation_token", "register_tokens")


class HfImageEncoder(nn.Module):
    """An image model of transformers: pixels (B, C, H, W) to features (B, L, D)."""

    def __init__(self, model: nn.Module, choice: OutputChoice) -> None:
        super().__init__()
        self.model = model
        self.choice = choice
        self.class_tokens = count_class_tokens(model)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalized pixels."""
        return _chosen(self.model, {"pixel_values": pixels}, self.choice, self.class_tokens)


class HfTextEncoder(nn.Module):
    """A text model of transformers: token ids and mask (B, L) to features (B, L, D).

    Args:
        padding_is_read: the model reads padding as it reads words, and is called without a mask, as SigLIP's is.
    """

    def __init__(self, model: nn.Module, choice: OutputChoice, padding_is_read: bool) -> None:
        super().__init__()
        self.model = model
        self.choice = choice
        self.padding_is_read = padding_is_read

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode token ids."""
        inputs = {"input_ids": input_ids}
        if not self.padding_is_read:
            inputs["attention_mask"] = mask.long()
        return _chosen(self.model, inputs, self.choice, 0)


class NoPooler(nn.Module):
    """A pooler that gives nothing."""

    def forward(self, *inputs: Any, **more: Any) -> None:
        """Return None, whatever it gets."""


def build_hf(source: str, options: Mapping[str, Any], preprocess: Preprocessor | None = None) -> nn.Module:
    """Build an encoder of transformers, with weights as its constructor leaves them.

    Args:
        source: the encoder's source, for errors.
        options: ``kind`` (image, text, audio), ``model`` (``MODULE:CLASS`` within transformers, or None with
            ``remote_code``), ``config``, and the fields of `OutputChoice`; for texts ``padding_is_read`` besides.
        preprocess: its preprocessing, which encoders of sound need.

    Raises:
        UsageError: transformers is missing, or the encoder does not fit its preprocessing.
        CheckpointError: it does not know the model, or does not take the configuration; or the model's own code is no
            longer where it was.
    """
    import_library("transformers", source)
    try:
        model = _model(options)
    except OSError as error:
        raise CheckpointError(
            f"The code of {source} is read from {options.get('remote_code')}, where it cannot be found "
            f"({reason(error)}); a model's own code is not kept in a checkpoint: put it back, or pack the model again."
        ) from error
    except (ImportError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The installed transformers cannot build {source} ({error}); install the version that packed it "
            f"({options.get('config', {}).get('transformers_version', 'unknown')})."
        ) from error
    return wrap_hf(model, options, preprocess)


def wrap_hf(model: nn.Module, options: Mapping[str, Any], preprocess: Preprocessor | None) -> nn.Module:
    """Wrap a model of transformers as an encoder; see `build_hf` for the arguments and errors."""
    choice = OutputChoice(**{name: options[name] for name in ("layer", "class_tokens", "pooled") if name in options})
    drop_unused_pooler(model, choice)
    if options["kind"] == "image":
        return HfImageEncoder(model, choice)
    if options["kind"] == "audio":
        return _audio_encoder(model, choice, preprocess)
    return HfTextEncoder(model, choice, bool(options.get("padding_is_read", False)))


def _audio_encoder(model: Any, choice: OutputChoice, preprocess: Preprocessor | None) -> nn.Module:
    kind = model.config.model_type
    require(
        choice.class_tokens == "keep" and choice.pooled == "leave",
        "class-tokens and pooled are options of image and text encoders; leave them out for sound.",
    )
    if kind in SPEECH_MODELS:
        layer = choice.layer
        if layer is not None and layer < 0:
            layer += model.config.num_hidden_layers + 1
        return SpeechEncoder(model, layer)
    require(choice.layer is None, f"A hidden layer cannot be chosen of a {kind} encoder; leave out layer.")
    if not isinstance(preprocess, AudioPreprocessor):
        raise UsageError(f"A {kind} encoder is built with the audio preprocessing that it reads; got {preprocess!r}.")
    return spectrogram_encoder(model, preprocess)


def drop_unused_pooler(model: nn.Module, choice: OutputChoice) -> None:
    """Remove a pooler that nobody reads: checkpoints often lack its weights, and it would cost time."""
    pooler = getattr(model, "pooler", None)
    # Averages, which have no weights, are left where they are: some models call them unasked.
    if choice.pooled == "leave" and isinstance(pooler, nn.Module) and list(pooler.parameters()):
        model.pooler = NoPooler()


def count_class_tokens(model: nn.Module) -> int:
    """Count the class, distillation and register tokens that a vision transformer puts before its patches."""
    count = 0
    embeddings = getattr(model, "embeddings", None)
    if isinstance(embeddings, nn.Module):
        for name, parameter in embeddings.named_parameters(recurse=False):
            if name in _CLASS_TOKENS:
                count += parameter.shape[-2] if parameter.ndim > 1 else 1
    return count


def _model(options: Mapping[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")
    if options.get("remote_code"):
        config = transformers.AutoConfig.from_pretrained(options["remote_code"], trust_remote_code=True)
        model: nn.Module = transformers.AutoModel.from_config(config, trust_remote_code=True)
        return model
    module, _, name = options["model"].partition(":")
    if not module.startswith(_MODELS):
        raise ValueError(f"{module} is not a part of transformers")
    model_class = getattr(importlib.import_module(module), name)
    config = model_class.config_class.from_dict(dict(options["config"]))
    # In float32 whatever precision the checkpoint is kept in: a precision is chosen at export.
    built: nn.Module = model_class._from_config(config, dtype=torch.float32)
    return built


def _chosen(model: nn.Module, inputs: Mapping[str, Tensor], choice: OutputChoice, class_tokens: int) -> Tensor:
    if choice.layer is None:
        output = model(**inputs, return_dict=True)
        features = output.last_hidden_state
    else:
        output = model(**inputs, return_dict=True, output_hidden_states=True)
        layers = len(output.hidden_states)
        if not -layers <= choice.layer < layers:
            raise UsageError(
                f"This encoder has layers 0 to {layers - 1} (or -1 to -{layers}); got layer={choice.layer}."
            )
        features = output.hidden_states[choice.layer]
    return choice.apply(features, class_tokens, getattr(output, "pooler_output", None))
