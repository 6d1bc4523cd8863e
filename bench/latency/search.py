"""Search by kind of index: what is found, bytes per item, milliseconds per query.

Queries are the held-out names of `glyphs`. The small gallery is one picture of each held-out character, as `make demo`
indexes it; the large one every picture of every split. Milliseconds are of the search alone, one query at a time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from bench.machine import processor
from fluxtalk.arrays import Floats, Integers
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.artifacts.index import IndexSpec
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.datasets import default_cache_dir, load_dataset
from fluxtalk.runtime import DTYPES, Embedder, load, maxsim, similarity
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.runtime.index.build import build_index
from fluxtalk.runtime.index.nearest_neighbors import EXACT_UP_TO
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.tokens import CONCAT, l2_normalize

_SHOWN = 10
_CANDIDATES = (20, 100, 500)

Ids = NDArray[np.str_]


@dataclass(frozen=True)
class Task:
    """Queries, a gallery, and the id that each belongs to."""

    name: str
    queries: Floats
    """Overlapping tokens (queries, tokens, dim)."""
    query_ids: Ids
    gallery: Floats
    gallery_ids: Ids


@click.command()
@option("--bundle", required=True, type=click.Path(path_type=Path), help="As `make demo` leaves it.")
@option("--cache_dir", metavar="DIR", help="Cache of renderings.  [default: ~/.cache/fluxtalk]")
@click.option("-o", "--output", default="bench/results/search.json", type=click.Path(path_type=Path), show_default=True)
@debug_option
@sentence_errors
def main(bundle: Path, cache_dir: str | None, output: Path) -> None:
    """Measure every kind of index in a few minutes, and write OUTPUT."""
    results: dict[str, Any] = {
        "machine": f"{processor()}, {available_cores()} cores",
        "load_average_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "versions": {name: metadata.version(name) for name in ("usearch", "numpy", "onnxruntime")},
    }
    with load(bundle) as embedder:
        results["embedding"] = {"dim": embedder.dim, "overlapping_tokens": embedder.num_overlapping}
        for task in tasks(embedder, default_cache_dir(cache_dir)):
            rows = list(measured(task, embedder))
            results[task.name] = {
                "items": len(task.gallery),
                "queries": len(task.queries),
                "exact": len(task.gallery) <= EXACT_UP_TO,
                "rows": rows,
            }
            click.echo(f"{task.name}: {len(task.queries)} queries among {len(task.gallery)} items")
            click.echo(f"{'index':<28}{'bytes':>7}{'ms':>8}{'R@1':>7}{'R@10':>7}{'of exact':>10}{'of its own':>12}")
            for row in rows:
                click.echo(
                    f"{row['index']:<28}{row['bytes_per_item']:>7}{row['ms_per_query']:>8.3f}{row['recall@1']:>7.3f}"
                    f"{row['recall@10']:>7.3f}{row['of_exact_pooled']:>10.3f}{row['of_its_own_exact']:>12.3f}"
                )
            write_json(output, results)
    click.echo(f"{output}")


def tasks(embedder: Embedder, cache: Path) -> Iterator[Task]:
    """The small and the large gallery, both asked the same."""
    data = load_dataset("glyphs", cache)
    test = data.split("test")
    names = test.items["text"]
    queries = _tokens(embedder, "text", list(names.values))
    query_ids = np.array(test.ids)[names.groups]
    parts = {}
    for split in data.splits.values():
        images = split.items["image"]
        parts[split.name] = (_tokens(embedder, "image", images.values), np.array(split.ids)[images.groups])
    counted = test.items["image"].counted
    tokens, ids = parts["test"]
    yield Task("small", queries, query_ids, tokens[counted], ids[counted])
    every = [np.concatenate([part[place] for part in parts.values()]) for place in (0, 1)]
    yield Task("large", queries, query_ids, every[0], every[1])


def measured(task: Task, embedder: Embedder) -> Iterator[dict[str, Any]]:
    """One row for each kind of index."""
    overlapping = task.gallery.shape[1]
    forms: dict[str, tuple[str, Floats, Floats]] = {}
    layout = embedder.bundle.manifest.layout
    for k in range(1, overlapping + 1):
        name = "pooled" if k == overlapping else f"pooled k={k}"
        combine = _concat if layout.summary == CONCAT else _pooled
        forms[name] = (layout.kind("pooled"), combine(task.queries[:, :k]), combine(task.gallery[:, :k]))
    if layout.summary != CONCAT:
        forms["concat"] = ("concat", _concat(task.queries), _concat(task.gallery))
    pooled = _best(similarity(*forms["pooled"][1:]))
    for name, (output, queries, gallery) in forms.items():
        own = _best(similarity(queries, gallery))
        for dtype in DTYPES:
            spec = IndexSpec.of(embedder.bundle, "image", output, dtype=dtype)
            yield from _rows(f"{name} {dtype}", task, spec, queries, gallery, (None,), pooled, own)
    own = _best(_blocks(task.queries, task.gallery))
    for dtype in DTYPES:
        spec = IndexSpec.of(embedder.bundle, "image", "tokens", dtype=dtype)
        yield from _rows(f"tokens {dtype}", task, spec, task.queries, task.gallery, _CANDIDATES, pooled, own)


def _rows(
    name: str,
    task: Task,
    spec: IndexSpec,
    queries: Floats,
    gallery: Floats,
    tried: Sequence[int | None],
    pooled: Integers,
    own: Integers,
) -> Iterator[dict[str, Any]]:
    """One index, searched with each number of candidates."""
    numbers = [str(row) for row in range(len(gallery))]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        manifest = build_index(Path(folder) / "index", np.array_split(gallery, 64), numbers, spec)
        seconds = time.perf_counter() - started
        index = SearchIndex(Path(folder) / "index")
        for candidates in tried:
            found, times = [], []
            for query in queries:
                started = time.perf_counter()
                hits = index.search(query[None], _SHOWN, candidates)[0]
                times.append((time.perf_counter() - started) * 1e3)
                found.append([int(hit.item) for hit in hits])
            answers = np.array(found)
            right = task.gallery_ids[answers] == task.query_ids[:, None]
            yield {
                "index": name if candidates is None else f"{name}, {candidates} re-ranked",
                "bytes_per_item": manifest.bytes_per_item,
                "build_seconds": round(seconds, 2),
                "ms_per_query": round(statistics.median(times), 4),
                "recall@1": round(float(right[:, 0].mean()), 4),
                "recall@10": round(float(right.any(axis=1).mean()), 4),
                "of_exact_pooled": _shared(answers, pooled),
                "of_its_own_exact": _shared(answers, own),
            }


def _tokens(embedder: Embedder, modality: str, items: Any) -> Floats:
    return np.ascontiguousarray(embedder.embed(modality, items, output="tokens")[:, : embedder.num_overlapping])


def _pooled(tokens: Floats) -> Floats:
    return l2_normalize(tokens.mean(axis=1))


def _concat(tokens: Floats) -> Floats:
    return l2_normalize(l2_normalize(tokens).reshape(len(tokens), -1))


def _blocks(queries: Floats, gallery: Floats) -> Floats:
    """MaxSim of all with all, a few queries at a time."""
    return np.concatenate([maxsim(part, gallery) for part in np.array_split(queries, max(1, len(queries) // 16))])


def _best(scores: Floats) -> Integers:
    """The best few of each row, best first."""
    best = np.argpartition(-scores, _SHOWN, axis=1)[:, :_SHOWN]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1), axis=1)


def _shared(found: Integers, expected: Integers) -> float:
    """The share of the expected answers that were found."""
    return round(float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])), 4)


if __name__ == "__main__":
    main()
