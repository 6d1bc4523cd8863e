"""The bundle: what export writes and the runtime serves. Its manifest names every file with its hash.

::

    BUNDLE/
      manifest.json
      text.onnx            one graph per modality: input arrays + token_index -> tokens, embeddings
      image.onnx
      text.tokenizer.json  files of the preprocessing
      golden.safetensors   inputs with their eager outputs, to verify parity anywhere
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxtalk.artifacts import Identity, hash_file, hash_json, write_json
from fluxtalk.config import StrictConfig, require, require_modality_name
from fluxtalk.errors import ArtifactError, BundleError, UsageError
from fluxtalk.preprocess import Preprocessor, from_parts

FORMAT = "fluxtalk.bundle"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TOKEN_INDEX = "token_index"
OUTPUTS = ("tokens", "embeddings")


@dataclass(frozen=True)
class ModalityEntry(StrictConfig):
    """One modality of a bundle."""

    graph: str
    """File name of the ONNX graph."""
    inputs: list[str]
    """The graph's inputs in order; the last is ``token_index`` (int64, (k,))."""
    preprocess: dict[str, Any]
    """Settings of `fluxtalk.preprocess`."""
    preprocess_files: dict[str, str]
    """The preprocessing's name of a file to the bundle's."""

    def __post_init__(self) -> None:
        _require_strings([self.graph], "graph")
        _require_strings(self.inputs, "inputs")
        require(isinstance(self.preprocess, dict), "preprocess is an object")
        require(isinstance(self.preprocess_files, dict), "preprocess_files is an object")
        _require_strings(list(self.preprocess_files.values()), "preprocess_files")


@dataclass(frozen=True)
class Manifest(StrictConfig):
    """Everything a bundle says about itself."""

    num_register_tokens: int
    num_overlapping_tokens: int
    dim: int
    opset: int
    precision: str
    modalities: dict[str, ModalityEntry]
    files: dict[str, str]
    """File name to SHA-256, of every file but the manifest."""
    golden: str
    """File name of the golden vectors."""
    stage1_hash: str
    identity: dict[str, str | None]
    training: dict[str, Any] = field(default_factory=dict)
    """What the run reported: data set, best step, test recall."""
    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("num_register_tokens", "num_overlapping_tokens", "dim", "opset"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, f"{name} is a positive integer; got {value!r}")
        require(
            self.num_overlapping_tokens <= self.num_register_tokens,
            f"num_overlapping_tokens lies in 1..{self.num_register_tokens}; got {self.num_overlapping_tokens}",
        )
        require(bool(self.modalities), "it has no modality")
        _require_strings([self.golden, self.stage1_hash], "golden and stage1_hash")
        require(isinstance(self.files, dict), "files is an object")
        _require_strings(list(self.files.values()), "files")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """Read back what `to_dict` gave."""
        entries = {name: ModalityEntry.from_dict(entry) for name, entry in content["modalities"].items()}
        for name in entries:
            require_modality_name(name)
        return cls.from_dict({**content, "modalities": entries})

    @property
    def bundle_hash(self) -> str:
        """What identifies the bundle's content: the hashes of its files, joined."""
        return hash_json(self.files)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    def graph(self, modality: str) -> Path:
        """The ONNX file of a modality."""
        return self.folder / self.manifest.modalities[modality].graph

    def preprocess(self, modality: str) -> Preprocessor:
        """The preprocessing of a modality."""
        entry = self.manifest.modalities[modality]
        files = {
            name: (self.folder / file).read_text(encoding="utf-8") for name, file in entry.preprocess_files.items()
        }
        try:
            return from_parts(entry.preprocess, files)
        except ArtifactError as error:
            raise BundleError(f"The bundle {self.folder} cannot be used: {error}") from None


def _require_strings(values: object, what: str) -> None:
    require(
        isinstance(values, list) and all(isinstance(value, str) for value in values),
        f"{what} holds text; got {values!r}",
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, last of all files of a bundle."""
    write_json(folder / MANIFEST, manifest.to_dict())


def read_bundle(folder: Path, check_hashes: bool = True) -> Bundle:
    """Open a bundle and verify that its files are those it was written with.

    Raises:
        BundleError: it is missing, foreign, from another schema, or a file is missing or was changed.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}; make one with `fluxtalk-export onnx`."
        ) from None
    except ValueError as error:
        raise BundleError(f"{path} is no JSON ({error}); export the bundle again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{path} does not describe a FluxTalk bundle; make one with `fluxtalk-export onnx`.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{folder} has bundle schema {content.get('schema_version')}; this FluxTalk reads {SCHEMA_VERSION}: "
            "export it again."
        )
    try:
        manifest = Manifest.from_json(content)
    except (UsageError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is malformed ({error}); export the bundle again.") from None
    _require_local_names(folder, manifest)
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"The bundle {folder} lacks {name}, which its manifest names; export or copy it again.")
        if check_hashes and hash_file(file) != expected:
            raise BundleError(
                f"{file} was changed since the bundle was written: its hash does not match; export or copy it again."
            )
    return Bundle(folder, manifest)


def manifest_identity(manifest: Manifest) -> Identity:
    """Who made the bundle's head."""
    return Identity(**manifest.identity)  # type: ignore[arg-type]


def _require_local_names(folder: Path, manifest: Manifest) -> None:
    """A manifest from a stranger must not name files outside its folder, nor files without a hash."""
    named = {manifest.golden}
    for entry in manifest.modalities.values():
        named |= {entry.graph, *entry.preprocess_files.values()}
    for name in named | set(manifest.files):
        if Path(name).name != name or name in ("", ".", ".."):
            raise BundleError(
                f"The manifest of {folder} names the file {name!r}, which is no plain file name; "
                "do not use this bundle."
            )
    unhashed = sorted(named - set(manifest.files))
    if unhashed:
        raise BundleError(f"The manifest of {folder} gives no hash for {', '.join(unhashed)}; export the bundle again.")
