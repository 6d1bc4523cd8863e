"""Figures of the glyphs benchmark from its runs, and the goals that they meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.quality.glyphs.probe import FACTORS
from bench.quality.glyphs.retrieval import HITS_AT, unpacked
from bench.quality.glyphs.variants import MAIN, Variant
from bench.quality.probes import paired_bootstrap_difference
from bench.quality.report import mean_and_deviation

TOLERANCE = 0.01
"""One point of recall."""
_CONCAT = "aggregation=concat"
_LINEAR = "mean_pool_linear"

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Variant name to its runs' results, seed by seed."""


def summarize(runs: Runs, known: Mapping[str, Variant], queries: int) -> dict[str, Any]:
    """Every figure over the seeds: recall, sizes, nested against separate models, type-face probes, goals.

    Args:
        queries: of each direction.
    """
    nested = nested_against_separate(runs, queries)
    probes = {name: _over_seeds([run["probe"] for run in found]) for name, found in runs.items()}
    summary: dict[str, Any] = {
        "labels": {name: known[name].label for name in runs},
        "kinds": {name: known[name].kind for name in runs},
        "recall": {name: _over_seeds([run["recall"] for run in found]) for name, found in runs.items()},
        "bytes": {name: found[0]["bytes"] for name, found in runs.items()},
        "parameters": {name: found[0]["parameters"] for name, found in runs.items()},
        "seconds_per_step": {n: _over_seeds([run["seconds_per_step"] for run in found]) for n, found in runs.items()},
        "best_share": {name: _over_seeds([run["best_share"] for run in found]) for name, found in runs.items()},
        "nested_minus_separate": nested,
        "probe": probes,
    }
    summary["equal_bytes"] = equal_bytes(summary)
    summary["goals"] = [
        nested_goal(nested),
        equal_bytes_goal(summary["equal_bytes"]),
        complementary_goal(probes[MAIN]),
        shared_goal(probes[MAIN], probes[_LINEAR]),
    ]
    return summary


def nested_against_separate(runs: Runs, queries: int) -> dict[str, dict[str, dict[str, float]]]:
    """Recall@10 of the main model at k, less that of the model trained for k alone, by direction and k.

    A query's difference is its mean over seeds; the 95 % interval is a bootstrap over queries.
    """
    main = runs[MAIN]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for direction, by_k in main[0]["hits"].items():
        found[direction] = {}
        for k in by_k:
            ours, alone = (_hits(results, direction, k, queries) for results in (main, runs[f"separate_{k}"]))
            difference = paired_bootstrap_difference(ours, alone, seed=0)
            found[direction][k] = {
                "difference": round(difference.mean, 5),
                "low": round(difference.low, 5),
                "high": round(difference.high, 5),
            }
    return found


def nested_goal(nested: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Within one point of the model trained for k alone, or within the interval, or above it, at every k."""
    each = {
        f"{direction}, k = {k}": row["difference"] >= -TOLERANCE or row["high"] >= 0
        for direction, by_k in nested.items()
        for k, row in by_k.items()
    }
    return _goal("Recall@10 at every k is that of the model trained for that k alone", each)


def equal_bytes(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Recall@10 of each baseline beside the register tokens of the same number of bytes.

    One vector of D floats is the pooled embedding of all overlapping tokens, whatever their number; several times as
    much are the first k tokens side by side, of the model that was trained for that.
    """
    rows = []
    for name, kind in summary["kinds"].items():
        if kind != "baseline":
            continue
        for k, size in summary["bytes"][name].items():
            ours = _model_of_size(summary, size)
            if ours is None:
                continue
            for direction, by_k in summary["recall"][name].items():
                model, at = ours
                rows.append(
                    {
                        "baseline": name,
                        "k": k,
                        "bytes": size,
                        "direction": direction,
                        "recall": by_k[k][str(HITS_AT)],
                        "model": model,
                        "model_k": at,
                        "model_recall": summary["recall"][model][direction][at][str(HITS_AT)],
                    }
                )
    return rows


def equal_bytes_goal(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The full model above every baseline of the same size."""
    each = {
        f"{row['baseline']}, {row['bytes']} bytes, k = {row['k']}, {row['direction']}": row["model_recall"]["mean"]
        > row["recall"]["mean"]
        for row in rows
    }
    return _goal("Recall@10 is above every baseline's at equal bytes", each)


def complementary_goal(probes: Mapping[str, Any]) -> dict[str, Any]:
    """True if a score is at least half of the way from the untrained register to the raw features."""
    each = {}
    for factor in FACTORS:
        untrained, raw = (probes[vector][factor]["mean"] for vector in ("untrained", "raw"))
        own = probes["complementary"][factor]["mean"] if "complementary" in probes else -1.0
        each[f"{factor}: {own:.3f}, needed {(untrained + raw) / 2:.3f}"] = own >= (untrained + raw) / 2
    return _goal("type face from the complementary token closes half of the gap from untrained to raw features", each)


def shared_goal(probes: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """No more readable from the pooled shared embedding than from the mean-pool baseline's."""
    each = {}
    for factor in FACTORS:
        ours, theirs = (vectors["shared"][factor]["mean"] for vectors in (probes, baseline))
        each[f"{factor}: {ours:.3f}, mean-pool {theirs:.3f}"] = ours <= theirs
    return _goal("type face is no more readable from the shared embedding than from mean-pool + linear's", each)


def _goal(what: str, each: Mapping[str, bool]) -> dict[str, Any]:
    missed = [name for name, held in each.items() if not held]
    return {"goal": what, "met": not missed, "of": len(each), "missed": missed}


def _model_of_size(summary: Mapping[str, Any], size: int) -> tuple[str, str] | None:
    """The register model whose items take so many bytes, and its k: the largest if several do."""
    for name in (MAIN, _CONCAT):
        fitting = [k for k, taken in summary["bytes"].get(name, {}).items() if taken == size]
        if fitting:
            return name, max(fitting, key=int)
    return None


def _hits(results: Sequence[Mapping[str, Any]], direction: str, k: str, queries: int) -> NDArray[np.float64]:
    """The share of seeds in which each query found its partner, (queries,)."""
    found = np.array([unpacked(result["hits"][direction][k], queries) for result in results])
    share: NDArray[np.float64] = found.mean(axis=0, dtype=np.float64)
    return share


def _over_seeds(values: Sequence[Any]) -> Any:
    """Nested dictionaries of numbers, one for each seed, to one of their means and deviations."""
    if isinstance(values[0], Mapping):
        return {key: _over_seeds([value[key] for value in values]) for key in values[0]}
    return mean_and_deviation(values)
