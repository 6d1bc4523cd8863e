"""Recall against bytes against milliseconds on a million items: our index, and the databases that users would take.

``python -m bench.compare search-scale``. Items are pictures of a data set, embedded by a bundle, each many times over
with noise: a million true pictures would need a million encodings. Queries are names. The truth is an exact search in
float32 over all tokens side by side, no number left out; recall is the share of its ten nearest that are found. Each
token gets noise of its own, half as long as the token, so that the copies of a picture are spread among others.
"""

from __future__ import annotations

import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.icons.tables import read_members
from bench.markdown import markdown_table
from fluxtalk.arrays import Floats, Integers
from fluxtalk.artifacts.bundle import read_bundle
from fluxtalk.artifacts.files import write_json
from fluxtalk.errors import BackendError
from fluxtalk.runtime import load
from fluxtalk.runtime.index.nearest_neighbors import NearestNeighbors
from fluxtalk.runtime.index.rerank import Reranker
from fluxtalk.tokens import TOKENS, concatenate, l2_normalize

ANSWERS = 10
NOISE = 0.5
"""Length of the noise, in lengths of a token."""
_BLOCK = 20_000
_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "binary": 0.125}

Search = Callable[[Floats], Integers]
"""Takes all tokens of one query (tokens, dim), and gives the numbers of the nearest items, best first."""


@dataclass(frozen=True)
class Part:
    """A part of an item or a query: its first ``k`` tokens, ``dim`` numbers of each."""

    k: int
    dim: int

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.k * self.dim

    def of(self, tokens: np.ndarray[Any, Any]) -> Floats:
        """Cut tokens (items, tokens, dim), and put them side by side: vectors (items, size) of length 1."""
        return concatenate(tokens[..., : self.dim].astype(np.float32), self.k, self.k)

    def of_one(self, tokens: Floats) -> Floats:
        """Cut the tokens of one query, (tokens, dim): its vector (size,)."""
        vector: Floats = self.of(tokens[None])[0]
        return vector


@dataclass(frozen=True)
class Items:
    """Tokens of all items, and of the queries, of length 1 each."""

    tokens: np.ndarray[Any, Any]
    """(items, tokens, dim), float16."""
    queries: Floats
    """(queries, tokens, dim), float32."""

    golden: Floats
    """(golden items, tokens, dim): the bundle's, of texts, by which our graphs choose how widely they are searched."""
    sizes: tuple[int, ...] = ()
    """Numbers of a token to which it may be cut, since it was trained so; rising, each below dim."""

    def vectors(self, part: Part) -> Iterator[Floats]:
        """Give a part of every item, of length 1, block by block."""
        for begin in range(0, len(self.tokens), _BLOCK):
            yield part.of(self.tokens[begin : begin + _BLOCK])

    def every_vector(self, part: Part) -> Floats:
        """Give them all at once."""
        found = np.empty((len(self.tokens), part.size), np.float32)
        begin = 0
        for block in self.vectors(part):
            found[begin : begin + len(block)] = block
            begin += len(block)
        return found


def make_items(bundle: Path, icons: Path, count: int, pictures: int, queries: int, seed: int = 0) -> Items:
    """Embed pictures of the training split and names of the test split, and multiply the pictures with noise."""
    members = read_members(icons)
    rng = np.random.default_rng(seed)
    train = [member for member in members if member.split == "train"]
    chosen = [train[row] for row in rng.choice(len(train), min(pictures, len(train)), replace=False)]
    names = sorted({member.name for member in members if member.split == "test"})
    with load(bundle) as embedder:
        real = embedder.embed("image", [icons / member.image for member in chosen], output="tokens")
        asked = embedder.embed(
            "text", [str(name) for name in rng.choice(names, queries, replace=False)], output="tokens"
        )
    found = np.empty((count, *real.shape[1:]), np.float16)
    for begin in range(0, count, _BLOCK):
        block = real[rng.integers(len(real), size=min(_BLOCK, count - begin))]
        noise = NOISE / np.sqrt(block.shape[-1]) * rng.standard_normal(block.shape, dtype=np.float32)
        found[begin : begin + len(block)] = l2_normalize(l2_normalize(block) + noise)
    read = read_bundle(bundle, check_hashes=False)
    golden = read.golden.batch["text"].expected["tokens"]
    return Items(found, l2_normalize(asked), golden, tuple(read.manifest.nested_dims))


def truth(items: Items) -> Integers:
    """Find the nearest of every query exactly: float32, all tokens."""
    part = Part(*items.tokens.shape[1:])
    wanted = part.of(items.queries)
    best = np.full((len(wanted), ANSWERS), -np.inf, np.float32)
    numbers = np.zeros((len(wanted), ANSWERS), np.int64)
    for number, block in enumerate(items.vectors(part)):
        scores = np.concatenate([best, wanted @ block.T], axis=1)
        rows = np.broadcast_to(np.arange(len(block)) + number * _BLOCK, (len(wanted), len(block)))
        known = np.concatenate([numbers, rows], axis=1)
        order = np.argpartition(-scores, ANSWERS, axis=1)[:, :ANSWERS]
        best, numbers = np.take_along_axis(scores, order, 1), np.take_along_axis(known, order, 1)
    return numbers


def measure(bundle: Path, icons: Path, count: int, pictures: int, queries: int, store: Path) -> dict[str, Any]:
    """Build every index, and ask all queries one at a time.

    Args:
        store: file that every row is written to as soon as it is measured. Rows that it has of the same items are not
            measured again, whatever code measured them, so that what takes hours may be stopped.

    Returns:
        ``space``, ``items``, ``pictures``, ``queries``, ``rows`` (name, k, dim, dtype, bytes of an item,
        recall, milliseconds, minutes to build) and ``failed``: name to reason.
    """
    given = {"space": read_bundle(bundle, check_hashes=False).manifest.space_id(TOKENS), "items": count}
    given |= {"pictures": pictures, "queries": queries}
    before = json.loads(store.read_text()) if store.is_file() else {}
    content = {**given, "rows": before["rows"] if given.items() <= before.items() else [], "failed": {}}
    items = make_items(bundle, icons, count, pictures, queries)
    expected = truth(items)
    with tempfile.TemporaryDirectory() as folder:
        for name, part, dtype, build in _indexes(items, Path(folder)):
            same = {"index": name, "k": part.k, "dim": part.dim, "dtype": dtype}
            said = f"{name}, {part.k} x {part.dim} numbers, {dtype}"
            if any(same.items() <= row.items() for row in content["rows"]):
                click.echo(f"{said}: measured before, as {store} says; remove it to measure anew")
                continue
            begin = time.perf_counter()
            try:
                search = build()
            except (ImportError, BackendError) as error:
                content["failed"][name] = str(error)
                continue
            minutes = (time.perf_counter() - begin) / 60
            row = {**same, "bytes": round(part.size * _BYTES[dtype])}
            row |= {**_ask(search, items.queries, expected), "minutes": round(minutes, 2)}
            click.echo(f"{said}: recall {row['recall']:.3f}, {row['ms']:.2f} ms, {minutes:.1f} min")
            content["rows"].append(row)
            write_json(store, content)
            del search  # before the next index takes its memory
    return content


def _ask(search: Search, queries: Floats, expected: Integers) -> dict[str, float]:
    shared, taken = [], []
    for query, right in zip(queries, expected, strict=True):
        begin = time.perf_counter()
        found = search(query)
        taken.append(1e3 * (time.perf_counter() - begin))
        shared.append(len(set(found.tolist()) & set(right.tolist())) / ANSWERS)
    return {"recall": round(statistics.fmean(shared), 4), "ms": round(statistics.median(taken), 3)}


def table(content: dict[str, Any]) -> str:
    """Write the rows as a table, by bytes."""
    ordered = sorted(content["rows"], key=lambda row: (row["bytes"], row["index"]))
    return markdown_table(
        ["index", "tokens x numbers", "as", "bytes of vectors", "recall@10", "ms", "build, min"],
        [
            [
                r["index"],
                f"{r['k']} x {r['dim']}",
                r["dtype"],
                f"{r['bytes']:,}",
                f"{100 * r['recall']:.1f}",
                f"{r['ms']:.1f}",
                r["minutes"],
            ]
            for r in ordered
        ],
    )


def _indexes(items: Items, folder: Path) -> Iterator[tuple[str, Part, str, Callable[[], Search]]]:
    largest, dim = items.tokens.shape[1:]
    first, whole = Part(1, dim), Part(largest, dim)
    cut = [Part(largest, size) for size in items.sizes]
    for part in (*(Part(k, dim) for k in (1, 2, 4, 8) if k <= largest), *cut):
        yield "exact", part, "float32", lambda part=part: _exact(items, part)  # type: ignore[misc]
    graphs = [(whole, "int8"), *((part, "int8") for part in cut), (whole, "binary")]
    for part, dtype in [*graphs, (first, "float16"), (first, "int8"), (first, "binary")]:
        yield "ours, graph", part, dtype, lambda part=part, dtype=dtype: _graph(items, part, dtype)  # type: ignore[misc]
    yield "ours, first token then all", whole, "float16", lambda: _coarse_to_fine(items, first)
    yield "Qdrant, local mode", first, "float32", lambda: _qdrant(items, first)
    yield "LanceDB, IVF-PQ", whole, "float32", lambda: _lancedb(items, whole, folder)
    yield "fast-plaid", whole, "float16", lambda: _fast_plaid(items, folder)


def _exact(items: Items, part: Part) -> Search:
    vectors = items.every_vector(part)

    def search(query: Floats) -> Integers:
        scores = vectors @ part.of_one(query)
        found = np.argpartition(-scores, ANSWERS)[:ANSWERS]
        return found[np.argsort(-scores[found])]

    return search


def _graph(items: Items, part: Part, dtype: str) -> Search:
    neighbors = _neighbors(items, part, dtype)
    return lambda query: neighbors.search(part.of_one(query), ANSWERS, exact=False)[0]


def _neighbors(items: Items, part: Part, dtype: str) -> NearestNeighbors:
    neighbors = NearestNeighbors.empty(part.size, dtype)
    for block in items.vectors(part):
        neighbors.add(block)
    neighbors.choose_ef_search(part.of(items.golden))
    return neighbors


def _coarse_to_fine(items: Items, first: Part) -> Search:
    reranker = Reranker(_neighbors(items, first, "float16"), items.tokens)
    return lambda query: reranker.search(query, ANSWERS, exact=False, candidates=500)[0]


def _qdrant(items: Items, part: Part) -> Search:
    qdrant: Any = importlib.import_module("qdrant_client")
    models = qdrant.models
    client = qdrant.QdrantClient(":memory:")
    client.create_collection("items", models.VectorParams(size=part.size, distance=models.Distance.COSINE))
    begin = 0
    for block in items.vectors(part):
        client.upload_collection("items", block, ids=range(begin, begin + len(block)))
        begin += len(block)

    def search(query: Floats) -> Integers:
        found = client.query_points("items", query=part.of_one(query).tolist(), limit=ANSWERS).points
        return np.array([point.id for point in found])

    return search


def _lancedb(items: Items, part: Part, folder: Path) -> Search:
    lancedb: Any = importlib.import_module("lancedb")
    pyarrow: Any = importlib.import_module("pyarrow")
    size = part.size

    def batches() -> Iterator[Any]:
        begin = 0
        for block in items.vectors(part):
            flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.ravel()), size)
            numbers = pyarrow.array(np.arange(begin, begin + len(block)))
            yield pyarrow.RecordBatch.from_arrays([numbers, flat], ["row", "vector"])
            begin += len(block)

    schema = pyarrow.schema([("row", pyarrow.int64()), ("vector", pyarrow.list_(pyarrow.float32(), size))])
    database = lancedb.connect(str(folder / "lance"))
    reader = pyarrow.RecordBatchReader.from_batches(schema, batches())
    made = database.create_table("items", reader)
    made.create_index(metric="cosine", vector_column_name="vector", index_type="IVF_PQ", num_sub_vectors=size // 8)

    def search(query: Floats) -> Integers:
        asked = made.search(part.of_one(query)).distance_type("cosine").nprobes(20).refine_factor(10).limit(ANSWERS)
        return np.array([row["row"] for row in asked.select(["row", "_distance"]).to_list()])

    return search


def _fast_plaid(items: Items, folder: Path) -> Search:
    plaid: Any = importlib.import_module("fast_plaid.search")
    torch: Any = importlib.import_module("torch")
    made = plaid.FastPlaid(index=str(folder / "plaid"), device="cpu")
    made.create(documents_embeddings=list(torch.from_numpy(items.tokens)))

    def search(query: Floats) -> Integers:
        found = made.search(queries_embeddings=torch.from_numpy(query[None].astype(np.float16)), top_k=ANSWERS)
        return np.array([number for number, _ in found[0]])

    return search
