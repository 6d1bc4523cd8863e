"""Small WebDataset shards, and the values that they hold."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

QUERY = "?image=jpg;png&text=txt&sound=ast.npy"


def write_shard(
    path: Path, members: Iterable[tuple[str, bytes]], mode: Any = "w", form: int = tarfile.PAX_FORMAT
) -> None:
    """A tar of these files, in this order."""
    with tarfile.open(path, mode, format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def npy_bytes(array: Any) -> bytes:
    """What `numpy.save` writes."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def sample_members(i: int) -> list[tuple[str, bytes]]:
    """Every third sample lacks the picture, every fifth the sound; other extensions belong to nobody."""
    members = [(f"part/{i:03}.txt", f"text {i}".encode()), (f"part/{i:03}.json", b"{}")]
    if i % 3:
        members.insert(0, (f"part/{i:03}.{'JPG' if i % 2 else 'png'}", bytes([i]) * (i * 7)))
    if i % 5 or not i % 3:
        members.append((f"part/{i:03}.ast.npy", npy_bytes(np.full((2, 4), i))))
    return members


def write_shards(folder: Path) -> None:
    """Four shards, ``s-00.tar`` to ``s-03.tar``, of 25 samples each."""
    for shard in range(4):
        numbers = range(25 * shard, 25 * (shard + 1))
        write_shard(folder / f"s-{shard:02}.tar", [member for i in numbers for member in sample_members(i)])


def expected_values(i: int) -> dict[str, Any]:
    """What `QUERY` makes of a sample, arrays as lists."""
    values: dict[str, Any] = {}
    for name, data in sample_members(i):
        extension = name.lower().partition(".")[2]
        if extension in ("jpg", "png"):
            values["image"] = data
        elif extension == "txt":
            values["text"] = data.decode()
        elif extension == "ast.npy":
            values["sound"] = [[i] * 4] * 2
    return values


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values that compare by ``==``: arrays as lists."""
    return {m: v.tolist() if isinstance(v, np.ndarray) else v for m, v in values.items()}
