"""TensorRT engines of a bundle, and the record beside each that says where it runs.

::

    BUNDLE/engines/
      text.fp16.rtx-1.7.1.116.sm89.0a1b2c3d.engine        the compiled plan
      text.fp16.rtx-1.7.1.116.sm89.0a1b2c3d.engine.json   its record: `EngineRecord`

An engine belongs to one kind of machine: it is not among the manifest's files, and two builds of one graph differ in
their bytes. Its record therefore names the graph by hash, and everything else that the engine depends on. The last part
of the name is a hash of the profiles and the builder's options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fluxtalk.artifacts.bundle import AXES, Manifest
from fluxtalk.artifacts.files import Identity, hash_bytes, hash_json, write_atomically, write_json
from fluxtalk.artifacts.json_files import read_json
from fluxtalk.config import StrictConfig, require, require_modality_name
from fluxtalk.errors import ArtifactError, BackendError, UsageError

FORMAT = "fluxtalk.engine"
SCHEMA_VERSION = 1

Flavor = Literal["tensorrt", "rtx"]
RTX: Flavor = "rtx"
FLAVORS: tuple[Flavor, ...] = ("tensorrt", RTX)
"""Keys of the two libraries in records and file names, where they stay as they are: stored engines have them."""
FLAVOR_NAMES: dict[Flavor, str] = {"tensorrt": "tensorrt", RTX: "tensorrt-rtx"}
"""Key to the name that commands and messages use, which is also the backend's."""
FLAVOR_ALIASES = {"rtx": "tensorrt-rtx"}
"""Other spellings that commands accept."""
Profile = dict[str, list[int]]
"""Axis (``batch``, ``length``, ``k``) to its smallest, optimal and largest size."""

_BATCH = [1, 8, 64]
_LENGTH = [1, 64, 512]
_FRAMES = [1, 500, 3000]
"""Frames of spectrograms: 5 and 30 seconds, usually."""
_SUFFIX = ".engine"
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]\Z")
_VERSION = re.compile(r"[0-9]+(\.[0-9a-z]+)+\Z")
_PRECISION = re.compile(r"[a-z][a-z0-9]*\Z")


def default_profile(manifest: Manifest, modality: str) -> Profile:
    """Give the profile for which engines are compiled unless a user names another.

    It takes batches of up to 64, every length that the modality may have (up to 512, or 3,000 frames of a spectrogram)
    and every k, and is fastest at k = N.
    """
    entry, tokens = manifest.modalities[modality], manifest.num_register_tokens
    profile: Profile = {"batch": [*_BATCH]}
    if entry.has_length:
        # Frames of a spectrogram are many and cheap, and a model such as Whisper reads all of them anyway.
        sizes = _FRAMES if entry.preprocess.get("features") else _LENGTH
        profile["length"] = [size if entry.max_length is None else min(size, entry.max_length) for size in sizes]
    return {**profile, "k": [1, tokens, tokens]}


@dataclass(frozen=True)
class TensorRecord(StrictConfig):
    """One input or output of an engine."""

    name: str
    dtype: str
    """Type by numpy's name: ``int64``, ``bool``, ``uint8``, ``float32``."""
    shape: list[int]
    """Sizes by dimension; -1 for a dynamic one."""


@dataclass(frozen=True)
class EngineRecord(StrictConfig):
    """Dependencies of an engine (graph, library, GPU, profiles), and the hash of its bytes."""

    modality: str
    precision: str
    """``fp32``, ``fp16``, ``bf16`` or ``int8``: the types of the graph it was built from."""
    flavor: Flavor
    """Key of the library that built it and runs it, one of `FLAVORS`."""
    version: str
    """Full version of the library that built it."""
    cuda_major: int | None
    """Major version of CUDA that the library was built for; None if its package does not say."""
    compute_capabilities: list[str]
    """Compute capabilities of the GPUs that it runs on, such as ``8.9``."""
    profiles: list[Profile]
    """Optimization profiles in the engine's order; a modality without a length has no such axis."""
    version_compatible: bool
    """True if it carries code that lets newer versions of its major version run it."""
    graph_hash: str
    """SHA-256 of the ONNX file that it was built from."""
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    engine_hash: str
    """SHA-256 of the plan's bytes."""
    engine_bytes: int
    built_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
    """Time of the build: UTC, ISO 8601."""
    identity: dict[str, str | None] = field(default_factory=lambda: Identity().fields())
    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_modality_name(self.modality)
        require(bool(_PRECISION.match(self.precision)), f"precision is a short name; got {self.precision!r}")
        require(self.flavor in FLAVORS, f"flavor is one of {', '.join(FLAVORS)}; got {self.flavor!r}")
        require(bool(_VERSION.match(self.version)), f"version is a dotted number; got {self.version!r}")
        require(bool(self.compute_capabilities), "compute_capabilities names at least one")
        for capability in self.compute_capabilities:
            require_compute_capability(capability)
        require(bool(self.profiles), "profiles holds at least one")
        for profile in self.profiles:
            _require_profile(profile)
        require(self.engine_bytes > 0, f"engine_bytes is positive; got {self.engine_bytes}")

    @property
    def file(self) -> str:
        """File name of the engine, which depends on what was asked for and not on the bytes."""
        return engine_name(
            self.modality,
            self.precision,
            self.flavor,
            self.version,
            self.compute_capabilities,
            options_hash(self.profiles, self.version_compatible, self.cuda_major),
        )

    def misfit(
        self,
        flavor: Flavor,
        version: str,
        compute_capability: str,
        graph_hash: str,
        cuda_major: int | None = None,
        allow_host_code: bool = False,
    ) -> str | None:
        """The reason why the engine cannot run there, in a few words; None if it can."""
        if self.flavor != flavor:
            return f"of flavor {FLAVOR_NAMES[self.flavor]}"
        if self.version_compatible and not allow_host_code:
            return "version-compatible, and so with code of its own that must be allowed (allow_host_code)"
        if self.version != version and not (self.version_compatible and _follows(version, self.version)):
            return f"of version {self.version}"
        if cuda_major is not None and self.cuda_major not in (None, cuda_major):
            return f"for CUDA {self.cuda_major}"
        if compute_capability not in self.compute_capabilities:
            return f"for compute capability {', '.join(self.compute_capabilities)}"
        return "built from another graph" if self.graph_hash != graph_hash else None


def require_compute_capability(value: str) -> None:
    """Check a compute capability.

    Raises:
        UsageError: the value is not a major and a minor number.
    """
    require(
        isinstance(value, str) and bool(_CAPABILITY.match(value)),
        f"A compute capability is a major and a minor number such as 8.9; got {value!r}.",
    )


def options_hash(profiles: Sequence[Profile], version_compatible: bool, cuda_major: int | None) -> str:
    """Eight hex digits of a hash of the profiles and the builder's options, for an engine's name."""
    return hash_json([list(profiles), version_compatible, cuda_major])[:8]


def engine_name(
    modality: str, precision: str, flavor: str, version: str, compute_capabilities: Sequence[str], options: str
) -> str:
    """File name of an engine: what it was built for, without the graph that it was built from.

    Args:
        options: of `options_hash`.
    """
    capabilities = "-".join(f"sm{value.replace('.', '')}" for value in compute_capabilities)
    return f"{modality}.{precision}.{flavor}-{version}.{capabilities}.{options}{_SUFFIX}"


def record_path(folder: Path, engine: str) -> Path:
    """Path of an engine's record."""
    return folder / f"{engine}.json"


def write_engine(folder: Path, plan: bytes | memoryview, record: EngineRecord) -> Path:
    """Write an engine and its record into a folder, so that a reader finds both or neither.

    Args:
        plan: the engine's bytes.

    Raises:
        ValueError: the record does not describe this plan.
    """
    if (record.engine_hash, record.engine_bytes) != (hash_bytes(plan), len(plan)):
        raise ValueError("the record is of another plan")
    path = folder / record.file
    # The record is removed first and written last: an engine without one counts as absent.
    record_path(folder, record.file).unlink(missing_ok=True)
    write_atomically(path, bytes(plan))
    content = record.to_dict()
    write_json(record_path(folder, record.file), {**content, "record_hash": hash_json(content)})
    return path


def read_record(folder: Path, engine: str) -> EngineRecord | None:
    """Read the record of an engine by the engine's file name; None if there is none.

    Raises:
        ArtifactError: the record is malformed, from another schema, was changed, or describes another engine.
    """
    path = record_path(folder, engine)
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtifactError(f"The record {path} is not valid JSON ({error}); {_again(folder)}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"{path} is not the record of a FluxTalk engine; {_again(folder)}.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has engine schema {content.get('schema_version')}; this FluxTalk reads {SCHEMA_VERSION}: "
            f"{_again(folder)}."
        )
    stated = content.pop("record_hash", None)
    if hash_json(content) != stated:
        raise ArtifactError(
            f"{path} was changed since the engine was built: its hash does not match; {_again(folder)}."
        )
    try:
        record = _from_json(content)
    except (UsageError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"The record {path} is malformed ({error}); {_again(folder)}.") from None
    if record.file != engine:
        raise ArtifactError(
            f"{path} describes the engine {record.file}, but its own name is that of {engine}; rename both."
        )
    return record


def read_engines(folder: Path) -> list[EngineRecord]:
    """Read the records of a bundle's folder of engines, by name; none if there is no such folder.

    An engine without a record was not finished and counts as absent.

    Raises:
        ArtifactError: a record is malformed or was changed, or its engine is missing.
    """
    records = []
    for path in sorted(folder.glob(f"*{_SUFFIX}.json")):
        record = read_record(folder, path.name.removesuffix(".json"))
        if record is None:  # removed since the folder was listed
            continue
        if not (folder / record.file).is_file():
            raise ArtifactError(f"The engine {folder / record.file}, which has a record, is missing; {_again(folder)}.")
        records.append(record)
    return records


def read_plan(folder: Path, record: EngineRecord) -> bytes:
    """Read the bytes of an engine and verify their hash.

    Raises:
        ArtifactError: the file is missing or was changed.
    """
    path = folder / record.file
    try:
        plan = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"The engine {path}, which has a record, is missing; {_again(folder)}.") from None
    if hash_bytes(plan) != record.engine_hash:
        raise ArtifactError(
            f"The engine {path} was changed since it was built: its hash does not match; {_again(folder)}."
        )
    return plan


def find_engine(
    folder: Path,
    modality: str,
    precision: str,
    flavor: Flavor,
    version: str,
    compute_capability: str,
    graph_hash: str,
    cuda_major: int | None = None,
    allow_host_code: bool = False,
) -> EngineRecord:
    """Find the newest engine of a folder that fits.

    Args:
        folder: a bundle's folder of engines.
        flavor: of the library that will run it, as are ``version`` and ``cuda_major`` (None if unknown).
        compute_capability: of the GPU that will run it, such as ``8.9``.
        graph_hash: SHA-256 of the bundle's graph.
        allow_host_code: whether version-compatible engines may be taken, which bring code that runs on the host.

    Raises:
        BackendError: none fits; the message lists the candidates and the command that builds one.
        ArtifactError: a record was changed, or its engine is missing.
    """
    candidates = [r for r in read_engines(folder) if (r.modality, r.precision) == (modality, precision)]
    there = (flavor, version, compute_capability, graph_hash, cuda_major, allow_host_code)
    fitting = [record for record in candidates if record.misfit(*there) is None]
    if fitting:
        return max(fitting, key=lambda record: record.built_at)
    found = "; ".join(f"{record.file} is {record.misfit(*there)}" for record in candidates) or "there is none of them"
    target = f" --compute-capability {compute_capability}" if flavor == RTX else ""
    name = FLAVOR_NAMES[flavor]
    raise BackendError(
        f"No engine in {folder} is {modality} in {precision} for {name} {version} and compute capability "
        f"{compute_capability}, built from this bundle's graph ({found}); build one{'' if target else ' on this GPU'} "
        f"with `fluxtalk-export trt {folder.parent} --flavor {name} --modality {modality} --precision {precision}"
        f"{target}`."
    )


def _from_json(content: dict[str, Any]) -> EngineRecord:
    tensors = {name: [TensorRecord.from_dict(tensor) for tensor in content[name]] for name in ("inputs", "outputs")}
    return EngineRecord.from_dict({**content, **tensors})


def _follows(version: str, built: str) -> bool:
    """True if a library of ``version`` runs a version-compatible engine of version ``built``: same major, not older."""
    numbers = [[int(part) for part in text.split(".") if part.isdigit()] for text in (version, built)]
    return numbers[0][0] == numbers[1][0] and numbers[0] >= numbers[1]


def _require_profile(profile: Profile) -> None:
    require(
        isinstance(profile, dict) and {"batch", "k"} <= set(profile) <= set(AXES),
        f"a profile has the axes batch and k, and length if the modality has one; got {profile!r}",
    )
    for axis, sizes in profile.items():
        require(
            isinstance(sizes, list)
            and len(sizes) == 3
            and all(isinstance(size, int) for size in sizes)
            and 1 <= sizes[0] <= sizes[1] <= sizes[2],
            f"{axis} of a profile is three sizes, 1 <= min <= opt <= max; got {sizes!r}",
        )


def _again(folder: Path) -> str:
    return f"build it again with `fluxtalk-export trt {folder.parent}`"
