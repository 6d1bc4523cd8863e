"""`Bundle` on disk: written by export, served by the runtime. Its manifest names every file with its hash.

::

    BUNDLE/
      manifest.json
      text.fp32.onnx       one graph per modality and precision: input arrays + token_index -> tokens, embeddings
      image.fp32.onnx
      text.tokenizer.json  files of the preprocessing
      golden.safetensors   inputs with their eager outputs, to verify parity anywhere
      quality.json         what each precision costs, measured on held-out pairs
      engines/             compiled for one kind of machine, each with its own record (`fluxtalk.artifacts.engine`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.artifacts.files import hash_file, hash_json, write_json
from fluxtalk.artifacts.golden import GoldenVectors, read_golden_file
from fluxtalk.artifacts.json_files import read_json, read_text
from fluxtalk.artifacts.onnx_file import validate_onnx_file
from fluxtalk.config import StrictConfig, require, require_modality_name
from fluxtalk.errors import ArtifactError, BundleError, UsageError, reason
from fluxtalk.preprocess import Preprocessor, from_parts
from fluxtalk.scoring.noise import Float32Noise
from fluxtalk.scoring.pair_recall import ServingCurve
from fluxtalk.scoring.parity import Tolerance
from fluxtalk.tokens import ATTENTION, MEAN, SUMMARIES, TokenLayout

FORMAT = "fluxtalk.bundle"
SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
TOKEN_INDEX = "token_index"
OUTPUTS = ("tokens", "embeddings")
AXES = ("batch", "length", "k")
"""Axes of a graph's inputs whose size may vary."""
FEATURES = "frozen_features"
"""Name of the value between encoder and head in every graph."""
GOLDEN = "golden.safetensors"
QUALITY = "quality.json"
ENGINES = "engines"
"""Folder of compiled engines, which are not part of the exported files."""
_OWN_HASH = "manifest_hash"
_MOST = 256 << 20
"""Bytes of the largest tokenizer.json that is read."""


@dataclass(frozen=True)
class TensorSpec(StrictConfig):
    """One input of a graph."""

    name: str
    dtype: str
    """Type by numpy's name, such as ``uint8``."""
    shape: list[str | int]
    """Sizes by dimension; the axis (``batch``, ``length`` or ``k``) for one that may vary."""

    def __post_init__(self) -> None:
        try:
            np.dtype(self.dtype)
        except TypeError:
            raise UsageError(f"dtype is a type of numpy's; got {self.dtype!r}") from None
        require(
            all(size in AXES or type(size) is int for size in self.shape),
            f"shape holds {', '.join(AXES)} and integers; got {self.shape!r}",
        )

    @property
    def datatype(self) -> str:
        """The type as KServe and Triton name it, such as ``FP32``."""
        return self.dtype.upper().replace("FLOAT", "FP")


@dataclass(frozen=True)
class ModalityEntry(StrictConfig):
    """One modality of a bundle."""

    graphs: dict[str, str]
    """Precision to the ONNX graph's file name."""
    inputs: list[TensorSpec]
    """Inputs of the graph, in order; the last is ``token_index`` (int64, (k,))."""
    max_length: int | None
    """Length of the longest input that preprocessing gives; None if inputs have no length, or no longest."""
    preprocess: dict[str, Any]
    """Settings of `fluxtalk.preprocess`."""
    preprocess_files: dict[str, str]
    """Name that the preprocessing gives a file, to its file name in the bundle."""
    float32: Float32Noise = field(default_factory=Float32Noise)
    """Measured noise of float32 and the promise of the float32 graph; the smallest promise in bundles without it."""

    def __post_init__(self) -> None:
        require(bool(self.graphs), "graphs names at least one")
        require(bool(self.inputs), "inputs names at least one tensor")
        require(
            self.max_length is None or self.max_length >= 1,
            f"max_length is a positive integer or null; got {self.max_length!r}",
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModalityEntry:
        """Read back what `to_dict` gave."""
        inputs = [TensorSpec.from_dict(spec) for spec in content["inputs"]]
        # Bundles from before the noise was measured were held to the smallest promise.
        float32 = Float32Noise.from_dict(content.get("float32", {}))
        return cls.from_dict({**content, "inputs": inputs, "float32": float32})

    @property
    def has_length(self) -> bool:
        """True if inputs vary in length, and are padded."""
        return any("length" in spec.shape for spec in self.inputs)


@dataclass(frozen=True)
class PrecisionEntry(StrictConfig):
    """One precision of a bundle."""

    tolerance: Tolerance
    """Promised limits on the difference from eager float32."""
    method: str = ""
    """Method that quantized int8; empty for other precisions."""
    serving: dict[str, Any] = field(default_factory=dict)
    """Measurements at export, on the machine it names: recall, latency by modality and k, and `serving_curve`'s
recall."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PrecisionEntry:
        """Read back what `to_dict` gave."""
        entry = cls.from_dict({**content, "tolerance": Tolerance.from_dict(content["tolerance"])})
        require(entry.serving_curve is None or bool(entry.serving_curve.recall.counts), "a curve has a point")
        return entry

    @cached_property
    def serving_curve(self) -> ServingCurve | None:
        """Typed measurements from which a search chooses its k; None in bundles from before, and without held-out
        pairs."""
        return ServingCurve.from_serving(self.serving) if "pair_recall" in self.serving else None


@dataclass(frozen=True)
class Manifest(StrictConfig):
    """Contents of ``manifest.json``: everything that a bundle says about itself."""

    num_register_tokens: int
    num_overlapping_tokens: int
    trained_register_tokens: int
    """Tokens that the head was trained with; more than ``num_register_tokens`` if the export cut it."""
    dim: int
    """Numbers of one token."""
    opset: int
    """Version of ONNX's operators."""
    outputs: list[str]
    """Outputs of every graph, in order: ``tokens``, ``embeddings``, and ``attention`` if the export added it."""
    precisions: dict[str, PrecisionEntry]
    modalities: dict[str, ModalityEntry]
    files: dict[str, str]
    """File name to SHA-256, for every file but the manifest."""
    golden: str
    """File name of the golden vectors."""
    stage1_hash: str
    """Hash of the frozen encoders."""
    head_hash: str
    """Hash of the trained head; with ``stage1_hash`` it identifies the space of the embeddings."""
    identity: dict[str, str | None]
    """Fields of `Identity`: the maker of the head."""
    training: dict[str, Any] = field(default_factory=dict)
    """Data set, best step and test recall of the run."""
    bytes_per_item: dict[str, Any] = field(default_factory=dict)
    """Kind of output to k to bytes of one item's vectors in float32."""
    summary: str = MEAN
    """One vector of an item that ``pooled`` gives, one of `fluxtalk.tokens.SUMMARIES`; a mean in bundles without it."""
    nested_dims: list[int] = field(default_factory=list)
    """Sizes below ``dim``, rising, to which a token may be cut."""
    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("num_register_tokens", "num_overlapping_tokens", "dim", "opset"):
            value = getattr(self, name)
            require(1 <= value < 1 << 31, f"{name} is a positive integer of at most 31 bits; got {value!r}")
        require(
            self.num_overlapping_tokens <= self.num_register_tokens,
            f"num_overlapping_tokens is in 1..{self.num_register_tokens}; got {self.num_overlapping_tokens}",
        )
        require(
            self.trained_register_tokens >= self.num_register_tokens,
            f"trained_register_tokens is at least {self.num_register_tokens}; got {self.trained_register_tokens!r}",
        )
        require(self.summary in SUMMARIES, f"summary is one of {', '.join(SUMMARIES)}; got {self.summary!r}")
        sizes = [0, *self.nested_dims, self.dim]
        require(
            sizes == sorted(set(sizes)),
            f"nested_dims are rising integers below {self.dim}; got {self.nested_dims!r}",
        )
        require(self.outputs in ([*OUTPUTS], [*OUTPUTS, ATTENTION]), f"outputs are {OUTPUTS}; got {self.outputs}")
        require(bool(self.modalities), "it has no modality")
        require(bool(self.precisions), "it has no precision")
        for name, entry in self.modalities.items():
            require(
                set(entry.graphs) == set(self.precisions),
                f"{name} has graphs in {', '.join(entry.graphs)}, the bundle in {', '.join(self.precisions)}",
            )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """Read back what `to_dict` gave."""
        entries = {name: ModalityEntry.from_json(entry) for name, entry in content["modalities"].items()}
        for name in entries:
            require_modality_name(name)
        precisions = {name: PrecisionEntry.from_json(entry) for name, entry in content["precisions"].items()}
        return cls.from_dict({**content, "modalities": entries, "precisions": precisions})

    @cached_property
    def bundle_hash(self) -> str:
        """Identity of the bundle: a hash over the hashes of its files."""
        return hash_json(self.files)

    @cached_property
    def layout(self) -> TokenLayout:
        """Register tokens of the bundle, which check and cut every ``k`` (`fluxtalk.tokens`)."""
        return TokenLayout(
            self.num_register_tokens,
            self.num_overlapping_tokens,
            self.dim,
            ATTENTION in self.outputs,
            self.summary,
            tuple(self.nested_dims),
        )

    def space_id(self, output: str, token_dim: int = 0) -> str:
        """Identify the space of vectors: those of one space can be compared, whatever their precision, k or dtype.

        Args:
            output: one of `fluxtalk.tokens.OUTPUT_KINDS`.
            token_dim: numbers to which each token is cut, whose space is another; 0 is all.
        """
        size = [token_dim] * (0 < token_dim < self.dim)
        return _hash_of(self.stage1_hash, self.head_hash, self.layout.kind(output), *size)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    def graph(self, modality: str, precision: str | None = None) -> Path:
        """Path of a modality's ONNX file, in the bundle's first precision unless another is named.

        Raises:
            UsageError: the bundle does not hold that precision.
        """
        return self.folder / self.manifest.modalities[modality].graphs[self.precision(precision)]

    def graph_hash(self, modality: str, precision: str) -> str:
        """SHA-256 of that file by the manifest, or a hash of two if its weights are in a file beside it."""
        name = self.graph(modality, precision).name
        hashes = [self.manifest.files[file] for file in (name, f"{name}.data") if file in self.manifest.files]
        return hashes[0] if len(hashes) == 1 else hash_json(hashes)

    def precision(self, name: str | None) -> str:
        """Precision of that name, which the bundle must hold; its first if the name is None.

        Raises:
            UsageError: the bundle does not hold it.
        """
        held = list(self.manifest.precisions)
        if name is not None and name not in held:
            raise UsageError(
                f"The bundle {self.folder} holds the precision{'s' * (len(held) > 1)} {', '.join(held)}; got {name!r}: "
                f"export the run again with --precision {name}."
            )
        return name or held[0]

    @property
    def engines(self) -> Path:
        """Folder of engines compiled for one kind of machine; it may be absent."""
        return self.folder / ENGINES

    @cached_property
    def golden(self) -> GoldenVectors:
        """Golden vectors, read once, when they are first asked for.

        Raises:
            BundleError: the file cannot be read, or lacks an array.
        """
        inputs = {
            modality: [spec.name for spec in entry.inputs if spec.name != TOKEN_INDEX]
            for modality, entry in self.manifest.modalities.items()
        }
        return read_golden_file(self.folder / self.manifest.golden, inputs, self.manifest.outputs)

    def release_golden(self) -> None:
        """Drop the golden vectors from memory; `golden` reads them again."""
        self.__dict__.pop("golden", None)

    def preprocess(self, modality: str) -> Preprocessor:
        """Preprocessing of a modality, made when it is first asked for: reading a tokenizer takes a while."""
        made: dict[str, Preprocessor] = self.__dict__.setdefault("_preprocess", {})
        if modality not in made:
            entry = self.manifest.modalities[modality]
            try:
                files = {name: read_text(self.folder / file, _MOST) for name, file in entry.preprocess_files.items()}
                made[modality] = from_parts(entry.preprocess, files)
            except (ArtifactError, ValueError) as error:
                raise BundleError(f"The bundle {self.folder} cannot be used: {error}") from None
        return made[modality]


@cache
def _hash_of(*parts: str | int) -> str:
    return hash_json(parts)


def graph_name(modality: str, precision: str) -> str:
    """File name of a graph in a bundle."""
    return f"{modality}.{precision}.onnx"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, last of all files of a bundle, with its own hash in it."""
    content = manifest.to_dict()
    write_json(folder / MANIFEST, {**content, _OWN_HASH: hash_json(content)})


def read_bundle(
    folder: Path, check_hashes: bool = True, modalities: Sequence[str] | None = None, precision: str | None = None
) -> Bundle:
    """Open a bundle and verify that its files are those it was written with.

    Args:
        modalities, precision: what is going to be loaded; other graphs must exist, and are not read. None is all.

    Raises:
        BundleError: it is missing, foreign, from another schema, or a file is missing or was changed.
    """
    path = folder / MANIFEST
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}; make one with `fluxtalk-export onnx`."
        ) from None
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON ({reason(error)}); export the bundle again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{path} does not describe a FluxTalk bundle; make one with `fluxtalk-export onnx`.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{folder} has bundle schema {content.get('schema_version')}; this FluxTalk reads {SCHEMA_VERSION}: "
            "export its run again with `fluxtalk-export onnx RUN -o BUNDLE`."
        )
    own_hash = content.pop(_OWN_HASH, None)
    if check_hashes and own_hash != hash_json(content):
        raise BundleError(f"{path} was changed since the bundle was written; export or copy it again.")
    try:
        manifest = Manifest.from_json(content)
    except (UsageError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is malformed ({reason(error)}); export the bundle again.") from None
    _require_local_names(folder, manifest)
    graphs = {g: (m, p) for m, entry in manifest.modalities.items() for p, g in entry.graphs.items()}
    others = {g for g, (m, p) in graphs.items() if not (m in (modalities or [m]) and (precision or p) == p)}
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"The bundle {folder} lacks {name}, which its manifest names; export or copy it again.")
        if check_hashes and name.removesuffix(".data") not in others and hash_file(file) != expected:
            raise BundleError(
                f"{file} was changed since the bundle was written: its hash does not match; export or copy it again."
            )
    if check_hashes:
        for graph in set(graphs) - others:
            validate_onnx_file(folder / graph)
    return Bundle(folder, manifest)


def _require_local_names(folder: Path, manifest: Manifest) -> None:
    """Refuse a stranger's manifest that names files outside its folder, or files without a hash."""
    named = {manifest.golden}
    for entry in manifest.modalities.values():
        named |= {*entry.graphs.values(), *entry.preprocess_files.values()}
    for name in named | set(manifest.files):
        if Path(name).name != name or name in ("", ".", ".."):
            raise BundleError(
                f"The manifest of {folder} names the file {name!r}, which is not a plain file name; "
                "do not use this bundle."
            )
    unhashed = sorted(named - set(manifest.files))
    if unhashed:
        raise BundleError(f"The manifest of {folder} gives no hash for {', '.join(unhashed)}; export the bundle again.")
