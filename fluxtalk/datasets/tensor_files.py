"""Arrays in `.npy` and `.safetensors` files, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fluxtalk.arrays import Array, Integers
from fluxtalk.errors import DataError, reason


@dataclass(frozen=True, slots=True)
class TensorName:
    """One tensor of a `.safetensors` file."""

    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"


class TensorFiles(Sequence[Any]):
    """Paths as they are, and tensors of `.safetensors` files as arrays, in a fixed order.

    It can be pickled, and read by several threads and processes: each process opens the files for itself.
    """

    def __init__(self, sources: Sequence[Path | TensorName]) -> None:
        self._sources = sources
        # A file's header names all of its tensors, so it is read once and not for every item.
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: Any) -> Any:
        """The path or array of this row, or another `TensorFiles` for a slice.

        Raises:
            DataError: the file cannot be read any more.
        """
        if isinstance(index, slice):
            return TensorFiles(self._sources[index])
        source = self._sources[index]
        return source if isinstance(source, Path) else self._read(source)

    def __getstate__(self) -> Sequence[Path | TensorName]:
        return self._sources

    def __setstate__(self, sources: Sequence[Path | TensorName]) -> None:
        self._sources = sources
        self._open = {}

    def take(self, rows: Integers) -> TensorFiles:
        """Select rows, in this order."""
        return TensorFiles([self._sources[row] for row in rows])

    def _read(self, source: TensorName) -> Array:
        try:
            if source.path not in self._open:
                self._open[source.path] = safe_open(source.path, framework="numpy")
            array: Array = self._open[source.path].get_tensor(source.name)
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise DataError(f"The tensor {source} cannot be read: {reason(error)}.") from None
        return array


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a `.safetensors` file.

    Raises:
        DataError: it is not a complete `.safetensors` file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read ({reason(error)}); it must be a complete .safetensors file.") from None
