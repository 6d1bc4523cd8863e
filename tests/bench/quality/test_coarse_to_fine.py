"""Coarse to fine against the index that serves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.quality.coarse_to_fine import measure
from fluxtalk.artifacts.index import IndexSpec
from fluxtalk.runtime.index.build import build_index
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.tokens import concatenate

ITEMS, QUERIES, TOKENS, DIM = 60, 25, 3, 16


def test_rows_are_what_an_index_of_tokens_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((ITEMS, TOKENS, DIM)).astype(np.float32)
    ids = rng.permutation(ITEMS)[:QUERIES]
    queries = (items[ids] + rng.standard_normal((QUERIES, TOKENS, DIM))).astype(np.float32)
    rows = {
        (row.coarse, row.dtype, row.token_dim, row.candidates): row
        for row in measure(queries, items, ids, np.arange(ITEMS), (8,), ("float32", "int8"))
    }
    for dtype, size in (("float32", 4), ("int8", 1)):
        spec = IndexSpec("bundle", "space", "image", "tokens", TOKENS, dtype)
        folder = tmp_path / dtype
        manifest = build_index(folder, [items], [str(i) for i in range(ITEMS)], spec)
        index = SearchIndex(folder)
        for candidates, name in ((ITEMS, "exact"), (10, "first"), (20, "first")):
            hits = index.search(queries, 10, candidates)
            found = [[int(hit.item) for hit in one] for one in hits]
            row = rows[name, dtype, DIM, candidates]
            assert row.recall_at_1 == np.mean([one[0] == own for one, own in zip(found, ids, strict=True)])
            assert row.recall_at_10 == np.mean([own in one for one, own in zip(found, ids, strict=True)])
            if name == "first":
                assert row.bytes_stored == manifest.bytes_per_item == (1 + TOKENS) * DIM * size
                assert row.bytes_read == ITEMS * DIM * size + candidates * TOKENS * DIM * size
    # Sizes are a grid, and candidates by all tokens side by side lose less than those by the first token.
    assert {row.token_dim for row in rows.values()} == {8, DIM}
    assert rows["exact", "int8", 8, ITEMS].bytes_stored == TOKENS * 8
    assert rows["concat", "float32", DIM, 20].of_exact > rows["first", "float32", DIM, 20].of_exact
    assert concatenate(items, TOKENS).shape[1] == TOKENS * DIM
