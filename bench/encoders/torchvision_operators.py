"""A torchvision built for another torch, made importable: its Python transforms work, its compiled operators do not."""

from __future__ import annotations

import importlib

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_torchvision_operators() -> None:
    """Declare the two operators without which `import torchvision` fails beside a CPU build of torch.

    timm, open_clip and transformers' torchvision processors import torchvision and use none of its compiled operators.
    Nothing happens where torchvision is missing, or imports as it is.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
        importlib.import_module("torchvision")
