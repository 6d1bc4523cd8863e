"""The graph of near neighbors of a large index is searched as widely as queries need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fluxtalk.artifacts.index import IndexSpec, read_index_manifest
from fluxtalk.datasets import PairDataset
from fluxtalk.runtime import load
from fluxtalk.runtime.index import nearest_neighbors
from fluxtalk.runtime.index.build import build_index, golden_queries
from fluxtalk.runtime.index.cli import main as index_command
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.tokens import l2_normalize
from tests.conftest import Made
from tests.runtime.index.test_index import clustered, content


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_graph_is_searched_as_widely_as_queries_of_another_modality_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Queries that are far from every item, as texts are from pictures, among many copies that differ a little."""
    monkeypatch.setattr(nearest_neighbors, "EXACT_UP_TO", 1000)
    rng = np.random.default_rng(0)
    of_item, of_query = rng.integers(32, size=8000), rng.integers(32, size=96)
    centers = clustered((32, 128))
    items, queries = (
        l2_normalize((centers[rows] + noise / 128**0.5 * rng.standard_normal((len(rows), 128))).astype(np.float32))
        for rows, noise in ((of_item, 1.0), (of_query, 5.0))
    )
    names = [str(row) for row in range(len(items))]

    def share(index: SearchIndex) -> float:
        exact, graph = (index.search(queries[48:], 10, exact=exact) for exact in (True, False))
        same = [len({h.item for h in a} & {h.item for h in b}) for a, b in zip(exact, graph, strict=True)]
        return float(np.mean(same)) / 10

    build_index(tmp_path / "own", [items], names, content(dtype=dtype))
    manifest = build_index(tmp_path / "chosen", [items], names, content(dtype=dtype), queries=queries[:48])
    assert read_index_manifest(tmp_path / "own").ef_search == 0
    assert manifest.ef_search > 64
    assert manifest.graph_recall >= 0.95
    before, after = share(SearchIndex(tmp_path / "own")), share(SearchIndex(tmp_path / "chosen"))
    assert before < 0.92
    # Other queries than those that it was chosen by.
    assert after > before + 0.04
    # Few items are compared one by one, whatever the graph would find.
    few = build_index(tmp_path / "few", [items[:900]], names[:900], content(dtype=dtype), queries=queries[:48])
    assert (few.ef_search, few.graph_recall) == (0, 1.0)


@pytest.mark.parametrize("output", ["pooled", "concat", "tokens", "complementary"])
def test_golden_queries_have_the_form_of_the_index(made: Made, table_data: PairDataset, output: str) -> None:
    bundle = made.bundle
    spec = IndexSpec.of(bundle, "image", output, None if output == "complementary" else 2)
    queries = golden_queries(bundle, spec)
    with load(bundle.folder) as embedder:
        items = table_data.split("test").items["image"].values[:3]
        vectors = embedder.embed("image", items, spec.k, spec.output)
    one = {"tokens": vectors[:, 0], "complementary": vectors.reshape(3, -1)}.get(output, vectors)
    assert queries.shape[1:] == one.shape[1:]
    asked = "image" if output == "complementary" else "text"
    assert len(queries) == len(bundle.golden.batch[asked].expected["tokens"])
    assert np.isfinite(queries).all()


def test_the_command_chooses_by_the_bundles_golden_items(
    made: Made, table_data: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest_neighbors, "EXACT_UP_TO", 5)
    items = [str(value) for value in table_data.split("test").items["image"].values[:12]]
    output = tmp_path / "i.index"
    done = CliRunner().invoke(index_command, ["build", str(made.bundle.folder), "image", *items, "-o", str(output)])
    assert done.exit_code == 0, done.output
    # A graph of twelve finds all with as few candidates as usearch takes by itself.
    assert "with ef_search 64 its graph finds 100 % of the nearest ten of the bundle's golden items" in done.output
    assert read_index_manifest(output).ef_search == SearchIndex(output).neighbors.ef_search == 64
