"""Golden vectors on disk: inputs with their eager outputs, in one file of the bundle.

For each modality the file holds one padded batch of preprocessed inputs and the float32 outputs of eager PyTorch at
k = N, named ``<modality>.<array>``. The last rows are hard cases: one feature before padding, one behind it, and none
at all; or a black image. If preprocessing has a longest input, one row of that length is stored separately, as
``<modality>.longest.<array>``: a whole batch padded to it would be large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fluxtalk.arrays import Array, Arrays
from fluxtalk.errors import BundleError

_LONGEST = "longest"


@dataclass(frozen=True)
class GoldenCase:
    """A batch of preprocessed inputs, and eager PyTorch's outputs."""

    inputs: Arrays
    """Arrays that the graph takes, without the token index."""
    expected: Arrays
    """Outputs at k = N, float32: (batch, N, dim); of attention (batch, N, length)."""


@dataclass(frozen=True)
class GoldenVectors:
    """Contents of a golden file."""

    batch: Mapping[str, GoldenCase]
    """Modality to its batch."""
    longest: Mapping[str, GoldenCase]
    """Modality to one row of the longest input that its preprocessing gives, if the file has one."""


def golden_bytes(vectors: GoldenVectors) -> bytes:
    """Encode a golden file: the same bytes for the same arrays."""
    named = [(modality, case) for modality, case in vectors.batch.items()]
    named += [(f"{modality}.{_LONGEST}", case) for modality, case in vectors.longest.items()]
    arrays = {
        f"{prefix}.{name}": np.ascontiguousarray(array)
        for prefix, case in named
        for name, array in (*case.inputs.items(), *case.expected.items())
    }
    return bytes(save(dict(sorted(arrays.items()))))


def read_golden_file(path: Path, inputs: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> GoldenVectors:
    """Read a golden file.

    Args:
        inputs: modality to the names of its inputs.
        outputs: names of the outputs, which every graph has.

    Raises:
        BundleError: the file cannot be read, or lacks an array.
    """
    try:
        arrays: dict[str, Array] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"The golden vectors {path} cannot be read ({error}); export the bundle again.") from None

    def case(prefix: str, names: Sequence[str]) -> GoldenCase:
        try:
            return GoldenCase(*({name: arrays[f"{prefix}.{name}"] for name in group} for group in (names, outputs)))
        except KeyError as error:
            raise BundleError(f"The golden vectors {path} lack {error}; export the bundle again.") from None

    longest = {m: f"{m}.{_LONGEST}" for m in inputs if any(name.startswith(f"{m}.{_LONGEST}.") for name in arrays)}
    return GoldenVectors(
        {modality: case(modality, names) for modality, names in inputs.items()},
        {modality: case(prefix, inputs[modality]) for modality, prefix in longest.items()},
    )
