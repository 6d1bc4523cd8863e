"""Change random words of a graph of near neighbors, and search what is not refused. Run by itself: it may crash.

``python search_changed_graphs.py FILE DIM DTYPE ITEMS COUNT SEED``
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np

from fluxtalk.errors import IndexFileError
from fluxtalk.runtime.index.nearest_neighbors import NearestNeighbors


def main(path: Path, dim: int, dtype: str, items: int, count: int, seed: int) -> None:
    """Search `count` changed copies of the file, and print how many were refused and how many answered."""
    rng = np.random.default_rng(seed)
    whole = path.read_bytes()
    rows, width = struct.unpack_from("<II", whole)
    head = 8 + rows * width
    refused = answered = 0
    for number in range(count):
        content = bytearray(whole)
        # Most of a file is its vectors, whose numbers may be anything: change the graph behind them.
        for _ in range(1 + number % 3):
            at = int(rng.integers(head if number % 10 else 0, len(content) - 4))
            word = rng.choice([0, 1, items - 1, items, 0x7FFFFFFF, 0xFFFFFFFF, int(rng.integers(1 << 32))])
            content[at : at + 4] = struct.pack("<I", int(word))
        if number % 50 == 0:
            del content[int(rng.integers(head, len(content))) :]
        changed = path.with_suffix(f".{number % 2}")
        changed.write_bytes(content)
        try:
            neighbors = NearestNeighbors.view(changed, dim, dtype, items)
            for exact in (False, True):
                found, _ = neighbors.search(rng.standard_normal(dim).astype(np.float32), 10, exact)
                assert (found < items).all(), found
            answered += 1
        except IndexFileError:
            refused += 1
    print(refused, answered)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:7]))
