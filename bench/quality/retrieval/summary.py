"""Figures of one task over the seeds, and whether ours is ever below another head of the same size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.quality.packed import unpacked
from bench.quality.probes import paired_bootstrap_difference
from bench.quality.report import mean_and_deviation
from bench.quality.retrieval.variants import Variant, variants

MARGIN = 0.01
"""One point of recall: how far below another head the 95 % bound of a difference may reach."""
DIRECTION = "text->image"

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Name of a head to its runs' results, seed by seed."""


def summarize(runs: Runs, costs: Runs, task: str) -> dict[str, Any]:
    """Give recall, sizes, costs, and the differences between ours and every head of the same size.

    Args:
        runs: with the scores of the test split.
        costs: with what training took; those of the sweep, of heads that were in it.
        task: name of the task.
    """
    heads = {name: variants(task)[name] for name in runs}
    return {
        "heads": {name: {"label": head.label, "kind": head.kind} for name, head in heads.items()},
        "bytes": {name: {str(k): head.bytes_per_item(k) for k in head.counts} for name, head in heads.items()},
        "recall": {
            name: {kind: over_seeds([run["test"][kind]["recall"] for run in found]) for kind in found[0]["test"]}
            for name, found in runs.items()
        },
        "cost": {name: over_seeds([{n: run[n] for n in _COST} for run in found]) for name, found in costs.items()},
        "differences": differences(runs, heads),
    }


_COST = ("cpu_seconds_per_step", "best_share", "parameters")


def differences(runs: Runs, heads: Mapping[str, Variant]) -> list[dict[str, Any]]:
    """Compare R@10 of ours, from text to image, with every other head at equal bytes.

    A query's difference is its mean over the seeds; the 95 % interval is a bootstrap over queries.
    """
    rows = []
    for ours in (head for head in heads.values() if head.kind == "ours"):
        for other in (head for head in heads.values() if head.kind in ("nested", "single")):
            for k in sorted(set(_sizes(ours)) & set(_sizes(other))):
                for kind in runs[ours.name][0]["test"]:
                    mine, theirs = (_found(runs[head.name], kind, str(_sizes(head)[k])) for head in (ours, other))
                    difference = paired_bootstrap_difference(mine, theirs, seed=0)
                    rows.append(
                        {
                            "ours": ours.name,
                            "other": other.name,
                            "bytes": k,
                            "kind": kind,
                            "difference": round(difference.mean, 5),
                            "low": round(difference.low, 5),
                            "high": round(difference.high, 5),
                            "not_below": bool(difference.low > -MARGIN),
                        }
                    )
    return rows


def _sizes(head: Variant) -> dict[int, int]:
    """Bytes to the number of tokens that take them."""
    return {head.bytes_per_item(k): k for k in head.counts}


def _found(results: Sequence[Mapping[str, Any]], kind: str, k: str) -> NDArray[np.float64]:
    """Share of seeds in which each query found what it asks for, (queries,)."""
    each = [result["test"][kind] for result in results]
    found = np.array([unpacked(part["hits"][DIRECTION][k], part["queries"][DIRECTION]) for part in each])
    share: NDArray[np.float64] = found.mean(axis=0, dtype=np.float64)
    return share


def over_seeds(values: Sequence[Any]) -> Any:
    """Turn nested dictionaries of numbers, one for each seed, into one of their means and deviations."""
    if isinstance(values[0], Mapping):
        return {key: over_seeds([value[key] for value in values]) for key in values[0]}
    return mean_and_deviation([float(value) for value in values])
