"""Search: results, stored bytes, and refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.index import IndexSpec, read_index_manifest
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BackendError, IndexFileError, UsageError
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.runtime import DTYPES, load, maxsim, quantize, similarity
from fluxtalk.runtime.index.build import build_index
from fluxtalk.runtime.index.limits import Limits
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.tokens import TokenLayout, concatenate
from tests.conftest import Made
from tests.runtime.test_serving import one_sentence, run

NAMES = [f"item {i}" for i in range(300)]


def content(output: str = "pooled", dtype: str = "float32") -> IndexSpec:
    return IndexSpec("bundle", "space", "image", output, 3, dtype)


def clustered(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Unit vectors, or tokens that resemble each other as an item's tokens do."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal(shape)
    if len(shape) == 3:
        vectors = rng.standard_normal((shape[0], 1, shape[2])) + 0.7 * vectors
    unit: np.ndarray = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return unit


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_search_is_the_order_of_all_similarities(tmp_path: Path, dtype: str) -> None:
    vectors = clustered((300, 20))
    parts = np.array_split(vectors, 7)
    manifest = build_index(tmp_path / "index", parts, NAMES, content(dtype=dtype))
    assert manifest.bytes_per_item == {"float32": 80, "float16": 40, "int8": 20, "binary": 3}[dtype]
    stored = quantize(vectors, dtype)
    scores = similarity(stored[:5], stored)
    for row, found in enumerate(SearchIndex(tmp_path / "index").search(vectors[:5], 4)):
        assert len(found) == 4
        assert found[0].item == NAMES[row]
        # Among equals, such as binary vectors that differ in as many bits, any may come first.
        np.testing.assert_allclose([hit.similarity for hit in found], np.sort(scores[row])[::-1][:4], atol=2e-3)
        for hit in found:
            assert abs(scores[row, NAMES.index(hit.item)] - hit.similarity) <= 2e-3


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_tokens_are_searched_coarse_to_fine(tmp_path: Path, dtype: str) -> None:
    tokens = clustered((300, 3, 24))
    manifest = build_index(tmp_path / "index", np.array_split(tokens, 4), NAMES, content("tokens", dtype))
    assert manifest.bytes_per_item == 4 * 24 * {"float32": 4, "float16": 2, "int8": 1}[dtype]
    index = SearchIndex(tmp_path / "index")
    queries = clustered((6, 3, 24), seed=1)
    exact = maxsim(queries, quantize(tokens, dtype))
    found = index.search(queries, 5, candidates=300)
    for row, hits in enumerate(found):
        assert [hit.item for hit in hits] == [NAMES[i] for i in np.argsort(-exact[row], kind="stable")[:5]]
        np.testing.assert_allclose([hit.similarity for hit in hits], np.sort(exact[row])[::-1][:5], atol=1e-5)
    # With few candidates: the best by MaxSim among those whose first token is nearest.
    first = similarity(queries[:, 0], quantize(tokens[:, 0], dtype))
    for row, hits in enumerate(index.search(queries, 3, candidates=12)):
        nearest = np.argsort(-first[row], kind="stable")[:12]
        expected = nearest[np.argsort(-exact[row][nearest], kind="stable")[:3]]
        assert [hit.item for hit in hits] == [NAMES[i] for i in expected]
    # A query of fewer tokens than the items have.
    assert len(index.search(queries[:, :1], 2)[0]) == 2


def slow_maxsim(query: np.ndarray, item: np.ndarray) -> float:
    """The definition: the mean, over the query's tokens, of the largest cosine with one of the item's."""
    cosines = [[q @ i / np.linalg.norm(q) / np.linalg.norm(i) for i in item] for q in query]
    return float(np.mean([max(row) for row in cosines]))


@pytest.mark.parametrize(("query_tokens", "item_tokens"), [(1, 1), (1, 4), (2, 3), (4, 1), (3, 4)])
def test_queries_and_items_have_each_their_number_of_tokens(
    tmp_path: Path, query_tokens: int, item_tokens: int
) -> None:
    tokens, queries = clustered((60, 4, 24)), clustered((3, 4, 24), seed=1)[:, :query_tokens]
    build_index(tmp_path / "index", [tokens], NAMES[:60], content("tokens"))
    found = SearchIndex(tmp_path / "index").search(queries, 5, item_tokens=item_tokens)
    for query, hits in zip(queries, found, strict=True):
        scores = np.array([slow_maxsim(query, item[:item_tokens]) for item in tokens])
        assert [hit.item for hit in hits] == [NAMES[row] for row in np.argsort(-scores)[:5]]
        np.testing.assert_allclose([hit.similarity for hit in hits], np.sort(scores)[::-1][:5], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_tokens_of_concat_vectors_compare(tmp_path: Path, dtype: str, count: int) -> None:
    tokens, queries = clustered((60, 3, 24)), clustered((3, 3, 24), seed=1)
    build_index(tmp_path / "index", [concatenate(tokens, 3)], NAMES[:60], content("concat", dtype))
    index = SearchIndex(tmp_path / "index")
    scores = concatenate(queries, 3, count) @ concatenate(tokens, 3, count).T
    tolerance = 2e-2 if dtype == "int8" else 2e-3
    for row, hits in enumerate(index.search(concatenate(queries, 3, count), 5, item_tokens=count)):
        for hit in hits:
            assert abs(scores[row, NAMES.index(hit.item)] - hit.similarity) <= tolerance
        np.testing.assert_allclose([h.similarity for h in hits], np.sort(scores[row])[::-1][:5], atol=tolerance)
    with pytest.raises(UsageError, match="dimension 72"):
        index.search(concatenate(queries, 3, 1))


def test_binary_concat_vectors_are_compared_whole(tmp_path: Path) -> None:
    tokens = clustered((20, 3, 24))
    build_index(tmp_path / "index", [concatenate(tokens, 3)], NAMES[:20], content("concat", "binary"))
    index = SearchIndex(tmp_path / "index")
    assert index.search(concatenate(tokens[:1], 3), 1)[0][0].item == NAMES[0]
    with pytest.raises(UsageError, match="dimension 72"):
        index.search(concatenate(tokens[:1], 3, 2), item_tokens=2)
    layout = TokenLayout(3, 3, 24)
    with pytest.raises(UsageError, match="can only be read as it was stored, at k = 3"):
        index.stored_tokens(layout).compare(layout.select(2, "concat"), 2)


def test_item_tokens_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    build_index(tmp_path / "one", [clustered((50, 16))], NAMES[:50], content())
    build_index(tmp_path / "many", [clustered((50, 2, 16))], NAMES[:50], content("tokens"))
    with pytest.raises(UsageError, match="this index holds a pooled vector"):
        SearchIndex(tmp_path / "one").search(clustered((1, 16)), item_tokens=1)
    for wrong in (0, 3):
        with pytest.raises(UsageError, match=f"from 1 to 2; got {wrong}"):
            SearchIndex(tmp_path / "many").search(clustered((1, 2, 16)), item_tokens=wrong)


def test_many_vectors_are_searched_by_their_graph(tmp_path: Path) -> None:
    vectors = clustered((3000, 16))
    build_index(tmp_path / "index", [vectors], [str(i) for i in range(3000)], content())
    index = SearchIndex(tmp_path / "index")
    exact, graph = index.search(vectors[:100], 10, exact=True), index.search(vectors[:100], 10, exact=False)
    shared = [len({h.item for h in a} & {h.item for h in b}) for a, b in zip(exact, graph, strict=True)]
    assert np.mean(shared) >= 9


def test_an_index_is_searched_from_many_threads(tmp_path: Path) -> None:
    vectors = clustered((300, 16))
    build_index(tmp_path / "index", [vectors], NAMES, content())
    index = SearchIndex(tmp_path / "index")

    def nearest(i: int) -> str:
        return index.search(vectors[i][None], 2, exact=i % 2 == 0)[0][0].item

    alone = [nearest(i) for i in range(300)]
    assert alone[::2] == NAMES[::2]
    # The graph may miss an item, and then does so in every thread.
    assert sum(a == b for a, b in zip(alone, NAMES, strict=True)) >= 290
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(nearest, range(300))) == alone


@pytest.mark.parametrize("output", ["pooled", "tokens"])
def test_a_changed_file_is_refused_by_name(tmp_path: Path, output: str) -> None:
    vectors = clustered((50, 16) if output == "pooled" else (50, 2, 16))
    folder = tmp_path / "index"
    manifest = build_index(folder, [vectors], NAMES[:50], content(output))
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"index.json"}
    with pytest.raises(IndexFileError, match="already exists"):
        build_index(folder, [vectors], NAMES[:50], content(output))
    for name in manifest.files:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(IndexFileError, match=name.replace(".", r"\.")):
            SearchIndex(folder)
        (folder / name).write_bytes(whole)
    facts = json.loads((folder / "index.json").read_text())
    changes: tuple[dict, ...] = (
        {"schema_version": 1},
        {"output": "attention"},
        {"dtype": "int4"},
        {"files": {}},
        {"more": 1},
    )
    for change in changes:
        (folder / "index.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(IndexFileError, match="not an index that this FluxTalk reads"):
            read_index_manifest(folder)


def test_what_does_not_fit_leaves_no_index(tmp_path: Path) -> None:
    vectors = clustered((50, 16))
    for count in (49, 51, 0):
        with pytest.raises(UsageError, match="for each of its"):
            build_index(tmp_path / "index", [vectors] if count else [], NAMES[:count], content())
    with pytest.raises(UsageError, match="pooled, concat, tokens, complementary"):
        content("attention")
    with pytest.raises(UsageError, match="dtype"):
        content(dtype="int4")
    assert not list(tmp_path.iterdir())


def test_queries_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    build_index(tmp_path / "one", [clustered((50, 16))], NAMES[:50], content())
    build_index(tmp_path / "many", [clustered((50, 2, 16))], NAMES[:50], content("tokens"))
    one, many = SearchIndex(tmp_path / "one"), SearchIndex(tmp_path / "many")
    for index, wrong in ((one, (1, 15)), (one, (1, 2, 16)), (one, (16,)), (many, (1, 16)), (many, (1, 0, 16))):
        with pytest.raises(UsageError, match="dimension 16"):
            index.search(np.ones(wrong, np.float32))
    with pytest.raises(UsageError, match="at least 1"):
        one.search(clustered((1, 16)), 0)
    with pytest.raises(UsageError, match="candidates"):
        one.search(clustered((1, 16)), candidates=10)
    assert len(one.search(clustered((1, 16)), space_id="space")[0]) == 10
    with pytest.raises(IndexFileError, match="do not share a space"):
        one.search(clustered((1, 16)), space_id="another")


def test_without_usearch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(BackendError, match=r"fluxtalk\[search\]"):
        build_index(tmp_path / "index", [clustered((5, 16))], NAMES[:5], content())
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def half(made: Made, table_data: PairDataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same run in fp16."""
    folder = tmp_path_factory.mktemp("half") / "bundle"
    options = ExportOptions(precisions=("fp16",), allow_quality_loss=True)
    return write_bundle(made.run, table_data, folder, options)


@pytest.mark.parametrize("kind", ["pooled", "concat", "tokens"])
def test_an_index_in_fp32_is_searched_in_fp16(
    made: Made, half: Bundle, table_path: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "index"
    done = run("index", "build", made.bundle.folder, "image", table_path.parent, "--kind", kind, "-o", folder)
    assert done.exit_code == 0, done.output
    index = SearchIndex(folder)
    pictures = sorted(table_path.parent.glob("test-*.png"))[:8]
    with load(half.folder) as embedder:
        assert embedder.precision == "fp16"
        for picture, hits in zip(pictures, index.search_items(embedder, "image", pictures, 1), strict=True):
            assert hits[0].similarity >= 0.999
            # Pictures may be identical under two names.
            if hits[0].item != str(picture):
                assert Path(hits[0].item).read_bytes() == picture.read_bytes()
        if kind == "concat":
            with pytest.raises(UsageError, match="dimension"):
                index.search_items(embedder, "text", ["omega"], 1, k=1)
        else:
            assert len(index.search_items(embedder, "text", ["omega"], 1, k=1)[0]) == 1
    found = run("index", "search", folder, "text", "omega", "-n", 3, "--bundle", half.folder)
    assert found.exit_code == 0, found.output
    assert len(found.output.splitlines()) == 3


def test_a_bundle_of_another_space_is_refused(made: Made, tmp_path: Path) -> None:
    manifest = made.bundle.manifest
    with load(made.bundle.folder) as embedder:
        for output in ("pooled", "tokens"):
            vectors = clustered((50, 48) if output == "pooled" else (50, 3, 48))
            other = dataclasses.replace(manifest, head_hash="of another training").space_id(output)
            stranger = dataclasses.replace(IndexSpec.of(embedder.bundle, "image", output), space_id=other)
            build_index(tmp_path / output, [vectors], NAMES[:50], stranger)
            with pytest.raises(IndexFileError, match="do not share a space"):
                SearchIndex(tmp_path / output).search_items(embedder, "text", ["omega"])
            one_sentence(run("index", "search", tmp_path / output, "text", "omega"), 1, "do not share a space")


def test_an_index_finds_its_bundle_and_items_from_anywhere(
    made: Made, table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    shutil.copytree(made.bundle.folder, project / "bundle")
    shutil.copy(next(table_path.parent.glob("test-*.png")), project / "a.png")
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    built = run("index", "build", "bundle", "image", "a.png", "-o", "photos.index")
    assert built.exit_code == 0, built.output
    monkeypatch.chdir(elsewhere)

    def found(index: Path) -> None:
        done = run("index", "search", index, "text", "omega")
        assert done.exit_code == 0, done.output
        assert done.output.split()[1:] == ["a.png"]
        assert SearchIndex(index).stored.item_path(0).resolve() == index.parent / "a.png"

    found(project / "photos.index")
    # The project as a whole may be moved; without its bundle the index says what to do.
    moved = project.rename(tmp_path / "moved")
    found(moved / "photos.index")
    shutil.rmtree(moved / "bundle")
    one_sentence(run("index", "search", moved / "photos.index", "text", "omega"), 1, "--bundle", str(moved / "bundle"))


def test_only_files_below_the_named_folders_are_found(tmp_path: Path) -> None:
    for name in ("given/a.png", "given/deep/b.png", "given-too/c.png", "private/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = tmp_path / "given"
    (given / "out.png").symlink_to(tmp_path / "private" / "d.png")
    (given / "up").symlink_to(tmp_path)
    (given / "ring.png").symlink_to("ring.png")
    (given / "in.png").symlink_to("deep/b.png")
    os.mkfifo(given / "pipe.png")
    inside = {"a.png": "a.png", "deep/b.png": "deep/b.png", "deep/../a.png": "a.png", "in.png": "deep/b.png"}
    outside = ["out.png", "up/private/d.png", "../private/d.png", "../given-too/c.png", "ring.png", "gone.png", ".", ""]
    outside += ["pipe.png", "nul\0.png", "n" * 300, "/etc/hostname", "/dev/zero"]
    names = [*(str(given / name) for name in inside), *(str(given / name) for name in outside)]
    build_index(tmp_path / "index", [clustered((len(names), 16))], names, content())
    stored = SearchIndex(tmp_path / "index").stored
    found = [stored.item_below(row, [given.resolve()]) for row in range(len(names))]
    assert found == [given / name for name in inside.values()] + [None] * len(outside)
    assert stored.item_below(0, []) is None
    assert stored.item_below(names.index(str(given / "out.png")), [given, tmp_path / "private"]) is not None


def test_the_index_commands(made: Made, tmp_path: Path) -> None:
    bundle, folder = made.bundle.folder, tmp_path / "index"
    lists = tmp_path / "texts.txt"
    lists.write_text("alpha\n\nbeta\n")
    built = run("index", "build", bundle, "text", "gamma", "--input", lists, "--dtype", "int8", "-o", folder)
    assert built.exit_code == 0, built.output
    assert "3 text items, pooled, k = 4, dimension 48, 48 bytes each in int8" in built.output
    found = run("index", "search", folder, "text", "beta", "-n", 2)
    assert found.exit_code == 0, found.output
    assert found.output.splitlines()[0].endswith("beta")
    assert len(found.output.splitlines()) == 2
    one_sentence(run("index", "search", folder, "text", "beta", "--candidates", 9), 2, "candidates")
    shown = run("inspect", folder, "--json")
    assert json.loads(shown.output)["kind"] == "index"
    table = tmp_path / "names.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], ["a", "alpha"], ["b", "beta"], ["o", "omega"]])
    many = tmp_path / "many"
    built = run(
        "index", "build", bundle, "text", "--input", table, "--kind", "tokens", "--dtype", "float16", "-o", many
    )
    assert built.exit_code == 0, built.output
    assert np.load(many / "tokens.npy").shape == (3, 3, 48)
    found = run("index", "search", many, "text", "omega", "-n", 1, "--candidates", 3, "-k", 2)
    assert found.output.split()[1:] == ["o"], found.output


def test_the_command_takes_a_k_for_each_side(made: Made, table_path: Path, tmp_path: Path) -> None:
    folder, picture = tmp_path / "index", next(table_path.parent.glob("test-*.png"))
    built = run("index", "build", made.bundle.folder, "text", "alpha", "beta", "--kind", "tokens", "-o", folder)
    assert built.exit_code == 0, built.output
    found = run("index", "search", folder, "image", picture, "-k", 1, "--item-k", 2)
    assert found.exit_code == 0, found.output
    assert found.stderr == "k = 1 for the query, item_k = 2: 576 bytes of each item\n"
    assert len(found.stdout.splitlines()) == 2
    chosen = run("index", "search", folder, "image", picture, "--max-bytes", 200)
    assert chosen.exit_code == 0, chosen.output
    assert chosen.stderr == "k = 1 for the query, item_k = 1: 192 bytes of each item\n"
    with load(made.bundle.folder, threads=1) as embedder:
        index = SearchIndex(folder)
        limits = Limits(max_bytes=200)
        hits = index.search_items(embedder, "image", [picture], limits=limits)[0]
        assert [f"{hit.similarity:7.4f}  {hit.item}" for hit in hits] == chosen.stdout.splitlines()
        assert index.compare(embedder, "image", limits=limits).item_k == 1
        tokens = embedder.embed("image", [picture], 2, "tokens")
        items = embedder.embed("text", ["alpha", "beta"], 3, "tokens")
        scores = [slow_maxsim(tokens[0], item) for item in items]
        hits = index.search_items(embedder, "image", [picture], k=2, item_k=3)[0]
        assert [hit.similarity for hit in hits] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    one_sentence(run("index", "search", folder, "text", "alpha", "--min-recall", 0.9), 2, "text->text", "item_k")
    one_sentence(run("index", "search", folder, "image", picture, "--max-bytes", 9), 2, "reads 192 bytes")
    one_sentence(run("index", "search", folder, "image", picture, "--item-k", 5), 2, "item_k must be", "1 to 4")
