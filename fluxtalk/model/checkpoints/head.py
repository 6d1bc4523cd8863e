"""The stage 2 checkpoint: the register head (and, for resuming, the training state) in one ``.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fluxtalk.artifacts.files import Identity, atomic_file, canonical_json, hash_bytes
from fluxtalk.artifacts.json_files import decode_json
from fluxtalk.artifacts.run import LAST
from fluxtalk.config import HeadConfig
from fluxtalk.errors import CheckpointError, UsageError, reason
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.head.registers import RegisterTokenModule

FORMAT = "fluxtalk.stage2"
SCHEMA_VERSION = 1
REDUCED_SCHEMA_VERSION = 2
"""Schema of a head on reduced features: a FluxTalk without reductions must refuse it."""


@dataclass(frozen=True)
class HeadCheckpoint:
    """A stage 2 checkpoint in memory."""

    config: HeadConfig
    weights: Mapping[str, Tensor]
    stage1_hash: str
    """`Stage1.content_hash` of the encoders that the head was trained on."""
    identity: Identity
    progress: Mapping[str, Any] = field(default_factory=dict)
    """Progress of training as plain values: step, epoch, validation score."""
    training_state: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that resuming needs; empty in a finished head."""
    reductions: Mapping[str, FeatureReduction] = field(default_factory=dict)
    """Modality to the reduction of its features; modalities that stay as they are, are absent."""

    def build(self) -> RegisterTokenModule:
        """Build the head with its weights, in evaluation mode."""
        head = RegisterTokenModule.from_config(self.config)
        head.load_state_dict(dict(self.weights))
        return head.eval()

    def space_hash(self) -> str:
        """Hash everything but the encoders that decides embeddings (SHA-256): configuration, weights and reductions.

        Progress and training state do not count.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        reductions = {name: part.content_hash() for name, part in self.reductions.items() if not part.identity}
        return _content_hash({"config": self.config.to_dict(), "reductions": reductions}, tensors)


def save_head(checkpoint: HeadCheckpoint, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        CheckpointError: it cannot be written, as on a full disk; an older file of that name stays as it was.
    """
    tensors = {f"head.{name}": t.detach().cpu().contiguous() for name, t in checkpoint.weights.items()}
    tensors |= {f"state.{name}": t.detach().cpu().contiguous() for name, t in checkpoint.training_state.items()}
    reductions = {name: part for name, part in checkpoint.reductions.items() if not part.identity}
    for modality, part in reductions.items():
        named = part.state_dict().items()
        tensors |= {f"reduction.{modality}.{name}": t.detach().cpu().contiguous() for name, t in named}
    header = {
        "schema_version": REDUCED_SCHEMA_VERSION if reductions else SCHEMA_VERSION,
        "config": checkpoint.config.to_dict(),
        "stage1_hash": checkpoint.stage1_hash,
        "identity": checkpoint.identity.fields(),
        "progress": dict(checkpoint.progress),
    }
    if reductions:
        header["reductions"] = {name: part.config.to_dict() for name, part in reductions.items()}
    metadata = {"format": FORMAT, "header": canonical_json(header), "content_hash": _content_hash(header, tensors)}
    try:
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (SafetensorError, OSError) as error:
        kept = "the checkpoint before is untouched" if path.is_file() else "none was written before"
        # Only a run's last checkpoint can be resumed.
        again = "--resume" if path.with_name(LAST).is_file() else "run again without --resume"
        raise CheckpointError(
            f"The checkpoint {path} cannot be written ({reason(error)}); {kept}. Free some space, then {again}."
        ) from None


def load_head(path: Path) -> HeadCheckpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: it is missing, truncated, foreign, from another schema, or was changed.
    """
    if not path.is_file():
        raise CheckpointError(
            f"The stage 2 checkpoint {path} does not exist; check the path, or train with fluxtalk-train."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it is truncated or not a .safetensors file.") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a FluxTalk stage 2 checkpoint; give one that fluxtalk-train wrote.")
    try:
        header = decode_json(metadata["header"])
        schema_version, content_hash = header["schema_version"], metadata["content_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is a malformed stage 2 checkpoint ({reason(error)}); restore it.") from None
    if schema_version not in (SCHEMA_VERSION, REDUCED_SCHEMA_VERSION):
        raise CheckpointError(
            f"{path} has stage 2 schema {schema_version}; this FluxTalk reads {SCHEMA_VERSION} and "
            f"{REDUCED_SCHEMA_VERSION}: "
            "install the version that wrote it."
        )
    if _content_hash(header, tensors) != content_hash:
        raise CheckpointError(
            f"{path} was changed since it was written: its content does not match its hash; train again or restore it."
        )
    try:
        config = HeadConfig.from_dict(header["config"])
        reductions = _reductions(header.get("reductions", {}), tensors)
    except (UsageError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be used: {reason(error)}.") from None
    return HeadCheckpoint(
        config=config,
        weights=_with_prefix(tensors, "head."),
        stage1_hash=header["stage1_hash"],
        identity=Identity(**header["identity"]),
        progress=header["progress"],
        training_state=_with_prefix(tensors, "state."),
        reductions=reductions,
    )


def _reductions(configs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, FeatureReduction]:
    reductions = {}
    for modality, values in configs.items():
        reductions[modality] = FeatureReduction(ReductionConfig.from_dict(values))
        reductions[modality].load_state_dict(_with_prefix(tensors, f"reduction.{modality}."))
    return reductions


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _content_hash(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    parts = [hash_bytes(canonical_json(header).encode())]
    for name in sorted(tensors):
        tensor = tensors[name]
        data = tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {hash_bytes(data)}")
    return hash_bytes("\n".join(parts).encode())
