"""The stage 1 checkpoint: per modality an encoder's specification, weights and preprocessing.

A ``.pth`` of tensors and plain types only, always read with ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxtalk.artifacts import trusted_code
from fluxtalk.artifacts.files import Identity, atomic_file, canonical_json
from fluxtalk.config import require_modality_name
from fluxtalk.datasets.data_paths import first_existing, with_absolute_path, with_relative_path
from fluxtalk.errors import ArtifactError, CheckpointError, UsageError, reason
from fluxtalk.model.encoders import EncoderSpec, FrozenEncoder, build_encoder
from fluxtalk.model.encoders.libraries import is_library_source
from fluxtalk.preprocess import Preprocessor, from_parts

FORMAT = "fluxtalk.stage1"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Stage1Modality:
    """One frozen encoder and its preprocessing."""

    spec: EncoderSpec
    weights: Mapping[str, Tensor]
    preprocess: Preprocessor
    untrusted_file: Path | None = None
    """The checkpoint that names code which nobody here has allowed to run; None if there is none to ask about."""

    @property
    def runs_code(self) -> bool:
        """True if building the encoder imports code that the checkpoint names."""
        return self.spec.source.startswith("module:") or bool(self.spec.options.get("remote_code"))

    def require_trusted(self) -> None:
        """Refuse an encoder that would run code which nobody allowed to.

        Raises:
            CheckpointError: the checkpoint is another's and its code was not allowed to run (see `trust_code`).
        """
        if self.untrusted_file is not None:
            raise CheckpointError(
                f"{self.untrusted_file} was not made by you on this machine, and its encoder {self.spec.source} would "
                "run code here: add --allow-code, once, if you trust whoever made it."
            )

    def build(self) -> FrozenEncoder:
        """Build the encoder with its weights, frozen.

        Raises:
            CheckpointError: the weights do not fit the encoder that the specification builds, or the checkpoint is
                another's and its code was not allowed to run (see `trust_code`).
        """
        self.require_trusted()
        encoder = build_encoder(self.spec.source, self.spec.options, self.spec.folder, self.preprocess)
        try:
            encoder.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"The stage 1 weights do not fit the encoder {self.spec.source}: {reason}.") from None
        return FrozenEncoder(encoder, self.preprocess, self.spec.dim)

    def content_hash(self) -> str:
        """Hash specification, preprocessing and weights (SHA-256); cached features are keyed by it."""
        config, files = self.preprocess.to_parts()
        spec = self.spec.to_dict()
        if is_library_source(self.spec.source):
            # Its options say everything: the same model by another name, or in another folder, is the same encoder.
            library = self.spec.source.partition(":")[0]
            spec["source"] = "hf" if library == "st" else library
        digest = hashlib.sha256(canonical_json([spec, config, files]).encode())
        for name in sorted(self.weights):
            tensor = self.weights[name].detach().contiguous().cpu()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
        return digest.hexdigest()


@dataclass(frozen=True)
class Stage1:
    """A stage 1 checkpoint in memory."""

    modalities: Mapping[str, Stage1Modality]
    data: str | None = None
    """Data set that stage 2 takes by default; saved with an absolute path."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Record of its making: command, seed, losses, seconds."""
    identity: Identity = field(default_factory=Identity)

    @property
    def kinds(self) -> dict[str, str]:
        """Modality to the kind of its preprocessing, by which a data set's items are read."""
        return {name: part.preprocess.kind for name, part in self.modalities.items()}

    @property
    def runs_code(self) -> bool:
        """True if building an encoder imports code that the checkpoint names."""
        return any(part.runs_code for part in self.modalities.values())

    def content_hash(self) -> str:
        """Hash everything that changes embeddings (SHA-256): every modality's encoder and preprocessing."""
        return hashlib.sha256(
            canonical_json({name: part.content_hash() for name, part in self.modalities.items()}).encode()
        ).hexdigest()


def save_stage1(stage1: Stage1, path: Path) -> None:
    """Write a checkpoint atomically, and trust the code that it names: whoever writes it has it already.

    Its data set is kept twice, absolutely and relative to the checkpoint, so that both can be moved together.

    Raises:
        UsageError: a modality's name cannot be a file name, or the data set's name is malformed.
    """
    for name in stage1.modalities:
        require_modality_name(name)
    content_hash = stage1.content_hash()
    if stage1.runs_code:
        trusted_code.trust(content_hash)
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "data": None if stage1.data is None else with_absolute_path(stage1.data),
        "data_relative": None if stage1.data is None else with_relative_path(stage1.data, path.parent),
        "figures": dict(stage1.figures),
        "identity": stage1.identity.fields(),
        "content_hash": content_hash,
        "modalities": {name: _to_plain(part) for name, part in stage1.modalities.items()},
    }
    with atomic_file(path) as temporary:
        torch.save(content, temporary)


def load_stage1(path: Path) -> Stage1:
    """Read and verify a checkpoint; nothing of it is run.

    An encoder that imports code builds only if this user made the checkpoint or has allowed its code (`trust_code`).

    Raises:
        CheckpointError: it is missing, unreadable, foreign, from another schema, or was changed.
    """
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a FluxTalk stage 1 checkpoint; "
            "make one with `fluxtalk stage1 pretrain` or `fluxtalk stage1 pack`."
        )
    if content.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has stage 1 schema {content.get('schema_version')}; this FluxTalk reads {SCHEMA_VERSION}: "
            "install the version that wrote it."
        )
    try:
        stage1 = Stage1(
            modalities={name: _from_plain(part) for name, part in content["modalities"].items()},
            data=_data(path.parent, content["data"], content.get("data_relative")),
            figures=content["figures"],
            identity=Identity(**content["identity"]),
        )
    except (KeyError, TypeError, AttributeError, UsageError, ArtifactError) as error:
        raise CheckpointError(f"{path} is a malformed stage 1 checkpoint ({error}); make it again.") from None
    content_hash = stage1.content_hash()
    if content_hash != content.get("content_hash"):
        raise CheckpointError(
            f"{path} was changed since it was written: its content does not match its hash; make it again."
        )
    if stage1.runs_code and not trusted_code.is_trusted(content_hash):
        modalities = {
            name: dataclasses.replace(part, untrusted_file=path) if part.runs_code else part
            for name, part in stage1.modalities.items()
        }
        return dataclasses.replace(stage1, modalities=modalities)
    return stage1


def trust_code(path: Path) -> None:
    """Allow, for this user from now on, the code that a checkpoint's encoders import.

    Raises:
        CheckpointError: as for `load_stage1`.
    """
    stage1 = load_stage1(path)
    if stage1.runs_code:
        trusted_code.trust(stage1.content_hash())


def _data(folder: Path, absolute: str | None, relative: str | None) -> str | None:
    """Return the data set's name with its present path; with its old one, if it is not found."""
    if absolute is None or relative is None:
        return absolute
    return first_existing([absolute, with_absolute_path(relative, folder)]) or absolute


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"The stage 1 checkpoint {path} does not exist; check --stage1-checkpoint.")
    try:
        intact = _checksums_match(path)
        content = torch.load(path, map_location="cpu", weights_only=True) if intact else None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors and plain types, or is not a PyTorch file; "
            "wrap its state_dict with `fluxtalk stage1 pack`."
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{path} cannot be read ({reason(error)}); it is truncated or not a PyTorch file."
        ) from None
    if not intact:
        raise CheckpointError(f"{path} was changed since it was written: a checksum does not match; make it again.")
    return content


def _checksums_match(path: Path) -> bool:
    """Return whether every file of the archive is intact: PyTorch does not check, and `content_hash` omits `data`."""
    if not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def _to_plain(part: Stage1Modality) -> dict[str, Any]:
    config, files = part.preprocess.to_parts()
    return {
        "encoder": part.spec.to_dict(),
        "preprocess": config,
        "preprocess_files": files,
        "weights": {name: tensor.detach().cpu().contiguous() for name, tensor in part.weights.items()},
    }


def _from_plain(part: Mapping[str, Any]) -> Stage1Modality:
    return Stage1Modality(
        spec=EncoderSpec.from_dict(part["encoder"]),
        weights=part["weights"],
        preprocess=from_parts(part["preprocess"], part["preprocess_files"]),
    )
