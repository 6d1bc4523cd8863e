"""What the encoders' own libraries make of an item: prepared input and features, computed without FluxTalk."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fluxtalk.arrays import Array


@dataclass(frozen=True)
class Reference:
    """One item through its library."""

    prepared: Array
    """Normalized pixels (C, H, W), token ids (L,), or samples or mel bins as the model takes them."""
    features: Array
    """(L, D), in float32."""


class LibraryEncoder:
    """An encoder that its own library loads and feeds.

    Args:
        source: as `bench.encoders.families.Family.save` returned it; its part behind the colon is a folder.
        model_class: of transformers; None for timm and open_clip.
    """

    def __init__(self, source: str, kind: str, model_class: str | None) -> None:
        library, _, name = source.partition("?")[0].partition(":")
        # The transformer of a sentence-transformers folder is one of transformers.
        self.library = "hf" if library == "st" else library
        name, _, file = name.partition("@")
        self.folder, self.name, self.file, self.kind = Path(name), name, file, kind
        with torch.no_grad():
            getattr(self, f"_load_{self.library}")(model_class)

    def reference(self, item: Any) -> Reference:
        """Run one item: a PIL image, a text, or a sound as (samples, rate)."""
        with torch.no_grad():
            prepared, features = getattr(self, f"_run_{self.library}")(item)
        return Reference(np.asarray(prepared), features.float().numpy()[0])

    def features_of_pixels(self, pixels: Array) -> Array:
        """Run normalized pixels (C, H, W) through a model of transformers: features (L, D)."""
        with torch.no_grad():
            found: Array = _sequence(self._model(torch.from_numpy(pixels)[None]).last_hidden_state)[0].numpy()
        return found

    def _load_hf(self, model_class: str | None) -> None:
        transformers = importlib.import_module("transformers")
        self._model = getattr(transformers, model_class or "AutoModel").from_pretrained(self.folder).eval().float()
        if self.kind == "image":
            self._processor = transformers.AutoImageProcessor.from_pretrained(self.folder, backend="pil")
        elif self.kind == "text":
            self._processor = transformers.AutoTokenizer.from_pretrained(self.folder)
        else:
            self._processor = transformers.AutoFeatureExtractor.from_pretrained(self.folder)
            if self._model.config.is_encoder_decoder:
                self._model = self._model.get_encoder()

    def _run_hf(self, item: Any) -> tuple[Any, torch.Tensor]:
        if self.kind == "image":
            inputs = self._processor(images=item, return_tensors="pt")
            features = self._model(**inputs).last_hidden_state
            return inputs["pixel_values"][0], _sequence(features)
        if self.kind == "text":
            fixed = "siglip" in self._model.config.model_type
            padding = {"padding": "max_length"} if fixed else {}
            inputs = self._processor(item, truncation=True, return_tensors="pt", **padding)
            if fixed:
                inputs.pop("attention_mask", None)
            inputs.pop("token_type_ids", None)
            return inputs["input_ids"][0], self._model(**inputs).last_hidden_state
        samples, rate = item
        inputs = self._processor(samples, sampling_rate=rate, return_tensors="pt")
        known = {name: value for name, value in inputs.items() if name in ("input_values", "input_features")}
        features = self._model(**known).last_hidden_state
        prepared = next(iter(known.values()))[0]
        if prepared.ndim == 3:  # CLAP has a channel
            prepared = prepared[0]
        elif self._model.config.model_type == "whisper":
            prepared = prepared.T
        return prepared, _sequence(features)

    def _load_timm(self, model_class: str | None) -> None:
        timm = importlib.import_module("timm")
        if self.file:
            self._model = timm.create_model(self.name, checkpoint_path=self.file).eval()
        else:
            self._model = timm.create_model(f"local-dir:{self.folder}", pretrained=True).eval()
        config = timm.data.resolve_data_config({}, model=self._model)
        self._processor = timm.data.create_transform(**config, is_training=False)

    def _run_timm(self, item: Image.Image) -> tuple[Any, torch.Tensor]:
        pixels = self._processor(item)
        features = self._model.forward_features(pixels[None])
        if features.ndim == 4 and getattr(self._model, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        return pixels, _sequence(features)

    def _load_open_clip(self, model_class: str | None) -> None:
        open_clip = importlib.import_module("open_clip")
        name = f"local-dir:{self.folder}"
        self._model, _, self._processor = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    def _run_open_clip(self, item: Any) -> tuple[Any, torch.Tensor]:
        if self.kind == "image":
            pixels = self._processor(item)
            found: Mapping[str, Any] = self._model.visual.forward_intermediates(
                pixels[None],
                normalize_intermediates=True,
                output_fmt="NLC",
                output_extra_tokens=True,
                indices=1,
            )
            prefix = found["image_intermediates_prefix"][-1]
            return pixels, torch.cat([prefix, found["image_intermediates"][-1]], dim=1)
        ids = self._tokenizer([item])
        features = self._model.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True)
        length = int((ids[0] != 0).sum())
        return ids[0, :length], features["text_intermediates"][-1][:, :length]


def _sequence(features: torch.Tensor) -> torch.Tensor:
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
