"""Files of weights: reading them, and finding the prefix under which an encoder's names stand in them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxtalk.errors import CheckpointError, reason

_WRAPPERS = ("state_dict_ema", "state_dict", "model_state_dict", "model_ema", "model", "module", "teacher", "student")
"""Keys under which training scripts keep a state_dict."""
_SHOWN = 3
_UNUSED = "num_batches_tracked"
"""Ending of names that old files lack, and that a frozen encoder does not use."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state_dict from a ``.safetensors`` file or a PyTorch file, unwrapped if a training script wrapped it.

    Raises:
        CheckpointError: it is missing, cannot be read, or holds something else; pickled code is never run.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"The weights {path} do not exist; check the path.") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"The weights {path} hold more than tensors and plain types, or are not a PyTorch file; "
            "save a state_dict of tensors."
        ) from None
    except Exception as error:  # pickle, zip and safetensors each raise their own
        raise CheckpointError(
            f"The weights {path} cannot be read ({reason(error)}); give a .safetensors or a state_dict of tensors."
        ) from None
    weights = _unwrapped(content)
    if weights is None:
        raise CheckpointError(f"The weights {path} must be a state_dict: names to tensors.")
    return weights


def fit_weights(
    encoder: nn.Module, weights: Mapping[str, Tensor], what: str, ignored: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Load weights into an encoder, whatever prefix their names have.

    Args:
        what: the file and the encoder, for errors, such as ``the weights w.pth do not fit timm:resnet18``.
        ignored: prefixes of names that the file may have in excess, such as a classifier's.

    Returns:
        The weights by the encoder's names, in the precision of the file.

    Raises:
        CheckpointError: a name is missing or in excess, or a tensor has another shape; it names the first of them.
    """
    expected = encoder.state_dict()
    prefix = find_prefix(expected, weights)
    # What does not start with the prefix belongs to another part of the model that the file was saved from.
    found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    for name, value in expected.items():
        if name.endswith(_UNUSED):
            found.setdefault(name, value)
    missing = [name for name in expected if name not in found]
    excess = [name for name in found if name not in expected and not name.startswith(tuple(ignored))]
    shapes = [
        f"{name} ({'x'.join(map(str, found[name].shape))} and not {'x'.join(map(str, value.shape))})"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    problems = [
        f"{label} {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' * (len(names) > _SHOWN)}"
        for label, names in (("missing", missing), ("in excess", excess), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(f"{what}: {'; '.join(problems)}.")
    fitting = {name: found[name] for name in expected}
    encoder.load_state_dict(fitting)
    return fitting


def find_prefix(expected: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """Find the prefix, such as ``module.`` or ``model.vision.``, under which most expected names stand in a file."""
    candidates = {""}
    for name in list(expected)[:_SHOWN]:
        candidates |= {key.removesuffix(name) for key in weights if key.endswith(f".{name}")}
    return max(sorted(candidates), key=lambda prefix: sum(prefix + name in weights for name in expected))


def _unwrapped(content: Any) -> dict[str, Tensor] | None:
    for _ in range(3):
        if not isinstance(content, dict):
            return None
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return content
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            return content if not content else None
        content = inner
    return None
