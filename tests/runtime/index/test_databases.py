"""Vector databases give the answers of the index that was pushed, and hold nothing half-written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb as lancedb_library
import numpy as np
import psycopg
import pytest
from qdrant_client import QdrantClient

from fluxtalk.artifacts.index import IndexSpec
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BackendError, IndexFileError, UsageError
from fluxtalk.runtime import load
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.index.build import build_index
from fluxtalk.runtime.index.databases import common, lancedb, pgvector, qdrant
from fluxtalk.runtime.index.databases.common import Contents, DatabaseSearch
from fluxtalk.runtime.index.search import Hit, SearchIndex
from fluxtalk.tokens import TOKENS, side_by_side
from tests.conftest import Made
from tests.runtime.index.postgres import running_postgres
from tests.runtime.index.test_index import clustered
from tests.runtime.test_serving import one_sentence, run

# Said once by Qdrant's local mode, which always compares with every vector, as the search asks of a server.
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
DATABASES = ("qdrant", "lancedb", "pgvector")


@dataclasses.dataclass(frozen=True)
class Database:
    """One of the three, open."""

    name: str
    client: Any
    push: Callable[[SearchIndex, Any, str], Contents]
    search: Callable[[Any, str], DatabaseSearch]
    names: Callable[[], set[str]]
    """List what is in it."""
    place: tuple[str, str]
    """Option of the command and its value."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a PostgreSQL server with pgvector."""
    with running_postgres() as url:
        yield url


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Each database, empty."""
    if request.param == "qdrant":
        client = QdrantClient(":memory:")
        yield Database(
            "qdrant",
            client,
            qdrant.push,
            qdrant.QdrantSearch,
            lambda: {found.name for found in client.get_collections().collections},
            ("--path", str(tmp_path / "qdrant")),
        )
        client.close()
    elif request.param == "lancedb":
        path = str(tmp_path / "lance")
        opened = lancedb_library.connect(path)
        names = lambda: set(opened.list_tables().tables)  # noqa: E731
        yield Database("lancedb", opened, lancedb.push, lancedb.LanceDBSearch, names, ("--path", path))
    else:
        url = request.getfixturevalue("postgres")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE EXTENSION vector")
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            names = lambda: {row[0] for row in connection.execute(tables)}  # noqa: E731
            yield Database("pgvector", connection, pgvector.push, pgvector.PgvectorSearch, names, ("--url", url))


@pytest.fixture(scope="module")
def embedder(made: Made) -> Iterator[Embedder]:
    """The shared bundle, open."""
    with load(made.bundle.folder, threads=1) as opened:
        yield opened


def index_of(embedder: Embedder, folder: Path, texts: list[str], output: str, dtype: str = "float32") -> SearchIndex:
    """Build an index of texts as `fluxtalk index build` does."""
    vectors = embedder.embed("text", texts, output=output)
    if output == TOKENS:
        vectors = vectors[:, : embedder.num_overlapping]
    if output == "complementary":
        vectors = side_by_side(vectors)
    build_index(folder, [vectors], texts, IndexSpec.of(embedder.bundle, "text", output, dtype=dtype))
    return SearchIndex(folder)


def assert_same(found: list[list[Hit]], expected: list[list[Hit]], tolerance: float = 2e-6) -> None:
    """Compare similarities, and items wherever no other is as similar."""
    assert len(found) == len(expected)
    for hits, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose([hit.similarity for hit in hits], [hit.similarity for hit in wanted], atol=tolerance)
        scores = {hit.item: hit.similarity for hit in wanted}
        for hit in hits[:-1]:
            assert scores[hit.item] == pytest.approx(hit.similarity, abs=tolerance)


@pytest.mark.parametrize(
    ("output", "dtype"), [("tokens", "float32"), ("tokens", "float16"), ("pooled", "float16"), ("concat", "float32")]
)
def test_answers_are_those_of_the_index(
    embedder: Embedder, table_data: PairDataset, database: Database, tmp_path: Path, output: str, dtype: str
) -> None:
    texts = sorted(set(table_data.split("test").items["text"].values))
    images = list(table_data.split("test").items["image"].values)[:3]
    index = index_of(embedder, tmp_path / "index", texts, output, dtype)
    assert database.push(index, database.client, "pushed").items == len(texts) == 32
    search = database.search(database.client, "pushed")
    assert search.contents == Contents.of(index)
    # The index's own search of float16 vectors accumulates in its own way.
    tolerance = 2e-6 if dtype == "float32" else 2e-3
    for k in (None,) if output == "concat" else (None, 1, 2):
        for modality, items in (("image", images), ("text", texts[:3])):
            found = search.search_items(embedder, modality, items, 5, k)
            assert_same(found, index.search_items(embedder, modality, items, 5, k), tolerance)
    assert search.search_items(embedder, "text", [texts[7]], 1)[0][0].item == texts[7]


def test_complementary_tokens_are_searched_from_their_modality(
    embedder: Embedder, database: Database, tmp_path: Path
) -> None:
    index = index_of(embedder, tmp_path / "index", ["alpha", "beta", "omega"], "complementary")
    database.push(index, database.client, "pushed")
    search = database.search(database.client, "pushed")
    assert_same(search.search_items(embedder, "text", ["beta"]), index.search_items(embedder, "text", ["beta"]))
    with pytest.raises(UsageError, match="holds what only text knows"):
        search.search_items(embedder, "image", [np.zeros((8, 8, 3), np.uint8)])


def test_the_first_token_chooses_candidates(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "ITEMS_AT_ONCE", 64)
    tokens, names = clustered((300, 3, 24)), [f"item {i}, of 100%" for i in range(300)]
    build_index(tmp_path / "index", [tokens], names, IndexSpec("bundle", "space", "image", TOKENS, 3))
    index = SearchIndex(tmp_path / "index")
    database.push(index, database.client, "pushed")
    search, queries = database.search(database.client, "pushed"), clustered((4, 3, 24), seed=1)
    narrow = index.search(queries, 3, candidates=6)
    assert narrow != index.search(queries, 3, candidates=300)
    for candidates in (6, 300, None):
        assert_same(search.search(queries, 3, candidates), index.search(queries, 3, candidates))
    assert len(search.search(queries[:1], 500)[0]) == 300


def test_what_does_not_compare_is_refused(embedder: Embedder, database: Database, tmp_path: Path) -> None:
    index = index_of(embedder, tmp_path / "index", ["alpha", "beta"], "pooled")
    database.push(index, database.client, "pushed")
    search = database.search(database.client, "pushed")
    query = embedder.embed("text", ["alpha"])
    assert search.search(query, 1, space_id=index.stored.manifest.space_id)[0][0].item == "alpha"
    with pytest.raises(IndexFileError, match="do not share a space"):
        search.search(query, space_id="another")
    with pytest.raises(UsageError, match=r"holds vectors of dimension 48; got queries of shape \(1, 47\)"):
        search.search(query[:, 1:])
    with pytest.raises(UsageError, match="leave candidates out"):
        search.search(query, candidates=5)
    with pytest.raises(UsageError, match="count and candidates are at least 1"):
        search.search(query, 0)
    with pytest.raises(UsageError, match="finite"):
        search.search(query * np.float32(np.nan))
    other = IndexSpec("bundle", "space", "text", "pooled", 4)
    build_index(tmp_path / "other", [query], ["alpha"], other)
    database.push(SearchIndex(tmp_path / "other"), database.client, "other")
    with pytest.raises(IndexFileError, match="do not share a space"):
        database.search(database.client, "other").search_items(embedder, "text", ["alpha"])


def test_nothing_is_half_written_or_written_over(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, names = clustered((300, 16)), [str(i) for i in range(300)]
    spec = IndexSpec("bundle", "space", "image", "pooled", 3)
    build_index(tmp_path / "good", [vectors], names, spec)
    vectors[250, 3] = np.nan
    build_index(tmp_path / "bad", [vectors], names, spec)
    build_index(tmp_path / "int8", [clustered((5, 16))], names[:5], dataclasses.replace(spec, dtype="int8"))
    monkeypatch.setattr(common, "ITEMS_AT_ONCE", 100)
    with pytest.raises((IndexFileError, BackendError), match="not finite"):
        database.push(SearchIndex(tmp_path / "bad"), database.client, "pushed")
    with pytest.raises(UsageError, match=r"float32 or float16; .* holds int8"):
        database.push(SearchIndex(tmp_path / "int8"), database.client, "pushed")
    assert database.names() == set()
    with pytest.raises(IndexFileError, match="pushed does not exist"):
        database.search(database.client, "pushed")
    good = SearchIndex(tmp_path / "good")
    database.push(good, database.client, "pushed")
    with pytest.raises(UsageError, match="pushed exists; name another"):
        database.push(good, database.client, "pushed")
    assert database.names() == {"pushed"}
    assert len(database.search(database.client, "pushed").search(clustered((1, 16)), 3)[0]) == 3


def test_a_table_of_another_is_refused(database: Database) -> None:
    if database.name == "qdrant":
        database.client.create_collection("theirs", vectors_config={})
    elif database.name == "lancedb":
        database.client.create_table("theirs", [{"vector": [1.0, 2.0]}])
    else:
        database.client.execute("CREATE TABLE theirs (row bigint)")
    with pytest.raises(IndexFileError, match="theirs does not hold what `fluxtalk index push` writes"):
        database.search(database.client, "theirs")


def test_the_command(made: Made, database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    built = run("index", "build", made.bundle.folder, "text", "alpha", "beta", "--kind", "tokens", "-o", folder)
    assert built.exit_code == 0, built.output
    command = ("index", "push", folder, "--to", database.name, *database.place, "--collection", "words")
    done = run(*command)
    assert done.exit_code == 0, done.output
    assert done.output == "words: 2 text items, tokens, k = 4, dimension 48\n"
    one_sentence(run(*command), 2, "words exists; name another")
    one_sentence(run(*command[:5], "--table", "words"), 2, f"{database.name} is reached by", "got neither")
    client = qdrant.connect(path=database.place[1]) if database.name == "qdrant" else database.client
    with load(made.bundle.folder, threads=1) as embedder:
        search = database.search(client, "words")
        assert search.search_items(embedder, "text", ["beta"])[0][0].item == "beta"
    if database.name == "qdrant":
        client.close()


def test_a_database_that_is_not_there_is_one_sentence(made: Made, tmp_path: Path) -> None:
    built = run("index", "build", made.bundle.folder, "text", "alpha", "-o", tmp_path / "index")
    assert built.exit_code == 0, built.output
    for database, url in (("qdrant", "http://127.0.0.1:9"), ("pgvector", "postgresql://127.0.0.1:9/none")):
        done = run("index", "push", tmp_path / "index", "--to", database, "--url", url, "--table", "words")
        one_sentence(done, 1, "failed", "refused")
