"""Coarse to fine: candidates by little, put in order by all tokens; what is still found, and the bytes that are read.

``python -m bench.quality.coarse_to_fine --task glyph-albums --variant maxsim --weights FILE -o FILE`` reads a head that
``python -m bench.quality.retrieval`` trained, and searches the test items of its task.

Candidates come from the first token of each item, as in an index of tokens (`fluxtalk.runtime.index.rerank`), or from
its summary: all tokens side by side, or their mean. MaxSim of all tokens of the query with all of each candidate puts
them in order. Exact is the same with every item as a candidate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file

from bench.quality.report import machine_info, write_results
from bench.quality.retrieval.job import BUDGETS, Budget, build_head, job_config
from bench.quality.retrieval.registry import task_options, tasks
from bench.quality.retrieval.tasks import ITEM, QUERY, task_named
from bench.quality.retrieval.variants import variant_named
from fluxtalk.arrays import Floats, Integers, vector_bytes
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.runtime import DTYPES, maxsim, quantize, similarity
from fluxtalk.tokens import concatenate, pool
from fluxtalk.train.results.score import all_tokens

CANDIDATES = (10, 20, 50, 100, 200)
SHOWN = 10


@dataclass(frozen=True)
class Row:
    """One way to search."""

    coarse: str
    """Vector by which candidates are found: ``first``, ``mean``, ``concat``; or ``exact``, without candidates."""
    dtype: str
    token_dim: int
    """Numbers of each token that are kept."""
    tokens: int
    """Tokens of each side."""
    candidates: int
    recall_at_1: float
    recall_at_10: float
    of_exact: float
    """Share of the first ten of the exact search that is among the first ten."""
    bytes_stored: int
    """Bytes of an item: the coarse vector and the tokens."""
    bytes_read: int
    """Bytes that a query reads, if the coarse vector of every item is compared."""


def measure(
    queries: Floats,
    items: Floats,
    query_ids: Integers,
    item_ids: Integers,
    token_dims: Sequence[int] = (),
    dtypes: Sequence[str] = DTYPES,
) -> Iterator[Row]:
    """Search at every size, format and number of candidates.

    Args:
        queries: overlapping tokens (queries, tokens, dim).
        items: overlapping tokens (items, tokens, dim).
        query_ids: id of each query.
        item_ids: id of each item; equal ones belong together.
        token_dims: sizes to which tokens are cut too.
    """
    tokens = items.shape[1]
    for dim in (*token_dims, items.shape[2]):
        asked, kept = queries[..., :dim], items[..., :dim]
        for dtype in dtypes:
            stored = quantize(kept, dtype)
            fine = maxsim(asked, stored)
            exact = _best(fine, SHOWN)
            of_tokens = tokens * vector_bytes(dim, dtype)
            right = query_ids[:, None] == item_ids[exact]
            yield _row("exact", dtype, dim, tokens, len(items), right, 1.0, of_tokens, len(items) * of_tokens)
            coarse = {
                "first": (asked[:, 0], kept[:, 0]),
                "mean": (pool(asked, tokens), pool(kept, tokens)),
                "concat": (concatenate(asked, tokens), concatenate(kept, tokens)),
            }
            for name, (query, item) in coarse.items():
                vectors = quantize(item, dtype)
                scores, size = similarity(query, vectors), vector_bytes(item.shape[1], dtype)
                for count in (count for count in CANDIDATES if count < len(items)):
                    chosen = _best(scores, count)
                    order = _best(np.take_along_axis(fine, chosen, axis=1), SHOWN)
                    found = np.take_along_axis(chosen, order, axis=1)
                    right = query_ids[:, None] == item_ids[found]
                    same = float((found[:, :, None] == exact[:, None]).any(axis=2).mean())
                    read = len(items) * size + count * of_tokens
                    yield _row(name, dtype, dim, tokens, count, right, same, size + of_tokens, read)


def _row(
    coarse: str, dtype: str, dim: int, tokens: int, count: int, right: Any, same: float, stored: int, read: int
) -> Row:
    first, shown = round(float(right[:, 0].mean()), 4), round(float(right.any(axis=1).mean()), 4)
    return Row(coarse, dtype, dim, tokens, count, first, shown, round(same, 4), stored, read)


def _best(scores: Floats, count: int) -> Integers:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


@click.command()
@option("--task", required=True, help="Name of a task.")
@option("--variant", default="maxsim", show_default=True, help="Name of a head in bench/quality/retrieval/variants.py.")
@click.option("--weights", required=True, type=click.Path(path_type=Path, exists=True), help="Its trained weights.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The JSON file to write.")
@option("--tuned", default="{}", help="JSON object of the options that it was trained with beside the variant's own.")
@task_options
@debug_option
@sentence_errors
def main(task: str, variant: str, weights: Path, output: Path, tuned: str, **places: Any) -> None:
    """Search the test items of a task coarse to fine with a trained head, and write OUTPUT."""
    torch.set_num_threads(1)
    made, chosen = task_named(task, tasks(**places)), variant_named(variant, task)
    head = build_head(chosen, job_config(chosen, 0, BUDGETS.get(task, Budget()), json.loads(tuned), made), made)
    head.load_state_dict(load_file(weights))
    layout = head.config.layout
    results: dict[str, Any] = {**machine_info(), "task": task, "variant": variant, "rows": {}}
    for kind, search in made.test.items():
        tokens = {
            modality: all_tokens(head, modality, source, search.counted[modality])[:, : layout.num_overlapping_tokens]
            for modality, source in search.sources.items()
        }
        rows = list(measure(tokens[QUERY], tokens[ITEM], search.groups[QUERY], search.groups[ITEM], layout.nested_dims))
        results["rows"][kind] = [asdict(row) for row in rows]
        click.echo(f"{kind}: {len(tokens[QUERY])} queries among {len(tokens[ITEM])} items")
        click.echo(f"{'coarse':<8}{'dtype':<9}{'dim':>5}{'of':>6}{'R@1':>7}{'R@10':>7}{'exact':>7}{'bytes read':>12}")
        for row in rows:
            click.echo(
                f"{row.coarse:<8}{row.dtype:<9}{row.token_dim:>5}{row.candidates:>6}{row.recall_at_1:>7.3f}"
                f"{row.recall_at_10:>7.3f}{row.of_exact:>7.3f}{row.bytes_read:>12,}"
            )
    write_results(output, results)
    click.echo(f"{output}")


if __name__ == "__main__":
    main()
