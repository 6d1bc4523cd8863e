"""Proof on synthetic ground truth: whether tokens are ordered, shared and private as the known factors are.

Two experiments, both with the real trainer on features in memory:

*factors*: shared and private factors seen token by token through random nonlinear encoders. What do the pooled
overlapping tokens know of the shared factors, the complementary token of the private ones, and each of what it should
not know? With the same head before training as control.

*order*: the linear-Gaussian twin, whose canonical correlations give the true order of shared directions. Tokens of few
numbers each, compared side by side: does token k add what the first k - 1 leave out, and does that vanish when the
registers are shuffled?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from bench.markdown import markdown_table
from bench.quality.report import ResultStore, machine_info, mean_and_deviation, one_thread
from bench.quality.synthetic.data import FactorSizes, synthetic_split
from bench.quality.synthetic.linear_gaussian import LinearPairs, LinearSizes
from bench.quality.synthetic.measures import ProbedTokens, factor_scores, order_scores
from bench.quality.synthetic.picture import draw as draw_picture
from bench.quality.synthetic.training import Budget, Variant, trained_head, training_options
from fluxtalk.artifacts.files import hash_json
from fluxtalk.console import debug_option, option, sentence_errors

PICTURE = Path("docs/images/quality-synthetic.png")
VERSIONS = {"factors": 1, "order": 2}
"""Increased when the same options train or score differently."""


def _contrast(correlation: float) -> dict[str, Any]:
    return {"complementary_objective": "contrast", "complementary_correlation_weight": correlation}


FACTORS = (
    Variant("untrained", "untrained registers", trained=False),
    Variant("none", "L2 + diversity alone"),
    Variant("reconstruction", "reconstruction", {"complementary_objective": "reconstruction"}),
    Variant("contrast", "contrast", {"complementary_objective": "contrast"}),
    Variant("contrast-0.3", "contrast, correlation 0.3", _contrast(0.3)),
    Variant("contrast-3", "contrast, correlation 3", _contrast(3.0)),
)
_CONCAT = {"aggregation": "concat", "output_projection": "per_register"}
ORDER = (
    Variant("nested", "nested dropout, k per sample", _CONCAT, width=4),
    Variant("nested-all", "loss at several k", {**_CONCAT, "nested_draw": "all"}, width=4),
    Variant("unordered", "no nested dropout", {**_CONCAT, "nested_dropout_rate": 0.0}, width=4),
    Variant("shared-output", "nested, one output projection", {"aggregation": "concat"}, width=4),
)


@click.command()
@click.option(
    "-o",
    "--output",
    default="bench/results/quality/synthetic.json",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The results file, which also keeps what an interrupted call has finished.",
)
@option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Number of seeds, from 0.")
@option("--quick", is_flag=True, help="A smoke test: a few steps and items, one seed.")
@option("--draw", is_flag=True, help=f"Draw {PICTURE} from the results.")
@option(
    "--picture", default=PICTURE, type=click.Path(path_type=Path), help="Picture that --draw writes.", show_default=True
)
@debug_option
@sentence_errors
def main(output: Path, seeds: int, quick: bool, draw: bool, picture: Path) -> None:
    """Train and measure what OUTPUT does not hold yet, in one thread, and print the tables."""
    budget, seeds = (Budget.quick(), 1) if quick else (Budget(), seeds)
    store = ResultStore(output)
    for kind, variants in (("factors", FACTORS), ("order", ORDER)):
        for seed in range(seeds):
            for variant in variants:
                name, mark = f"{kind}/{variant.name}/{seed}", _fingerprint(kind, variant, budget)
                if store.get(name, mark) is None:
                    click.echo(name)
                    with one_thread():
                        result = _run(kind, variant, budget, seed)
                    store.put(name, mark, result)
    runs: dict[str, dict[str, list[Any]]] = {
        kind: {
            v.name: [store.get(f"{kind}/{v.name}/{seed}", _fingerprint(kind, v, budget)) for seed in range(seeds)]
            for v in variants
        }
        for kind, variants in (("factors", FACTORS), ("order", ORDER))
    }
    summary = {
        **machine_info(),
        "seeds": seeds,
        "budget": dataclasses.asdict(budget),
        "sizes": {"factors": dataclasses.asdict(FactorSizes()), "order": dataclasses.asdict(LinearSizes())},
        "labels": {v.name: v.label for v in (*FACTORS, *ORDER)},
        **{kind: {name: over_seeds(found) for name, found in by_name.items()} for kind, by_name in runs.items()},
    }
    store.finish(
        [f"{k}/{name}/{seed}" for k, by_name in runs.items() for name in by_name for seed in range(seeds)], summary
    )
    click.echo(tables(summary))
    if draw:
        draw_picture(summary, picture)
        click.echo(f"{picture}")


def over_seeds(values: Sequence[Any]) -> Any:
    """Results of several seeds, however nested, to ``mean`` and ``deviation`` of each number."""
    if isinstance(values[0], dict):
        return {key: over_seeds([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [over_seeds([value[i] for value in values]) for i in range(len(values[0]))]
    return mean_and_deviation(values)


def tables(summary: dict[str, Any]) -> str:
    """The results in Markdown."""
    factor_names: dict[str, Callable[[dict[str, Any]], Any]] = {
        "shared, pooled": lambda r: _last(r["shared_by_pooled"]),
        "private, complementary": lambda r: r["private_by_complementary"],
        "shared, complementary": lambda r: r["shared_by_complementary"],
        "private, pooled": lambda r: r["private_by_pooled"],
        "other's private, complementary": lambda r: r["others_private_by_complementary"],
        "R@1": lambda r: _last(r["recall_at_1"]),
    }
    factors = markdown_table(
        ["R^2 of ..., read from ...", *factor_names],
        [
            [summary["labels"][name], *(_cell(read(result)) for read in factor_names.values())]
            for name, result in summary["factors"].items()
        ],
    )
    rows = []
    for name, result in summary["order"].items():
        for k, gain in result["gain"].items():
            rows.append(
                [
                    f"{summary['labels'][name]}, token {k}",
                    _with_interval(gain),
                    _cell(result["gain_shuffled"][k]),
                    _with_interval(result["ahead"][k]) if k in result["ahead"] else "",
                    _cell(result["recall_at_1"][k]),
                ]
            )
    header = ["token k", "adds to R^2 (95 % interval)", "shuffled", "1..k ahead of any k (95 % interval)", "R@1 with k"]
    order = markdown_table(header, rows)
    return f"{factors}\n\n{order}"


def _run(kind: str, variant: Variant, budget: Budget, seed: int) -> dict[str, Any]:
    if kind == "factors":
        sizes = FactorSizes()
        train, test = (
            synthetic_split(sizes, seed, name, count)
            for name, count in (("train", budget.train_items), ("test", budget.test_items))
        )
        config = training_options(variant, budget, seed, budget.train_items)
        head = trained_head(variant, config, train.features, train.split("train"))
        return factor_scores(ProbedTokens(head, train.features, test.features, budget.probe_items), train, test)
    pairs = LinearPairs(LinearSizes(), seed)
    one, two = pairs.draw("train", budget.train_items), pairs.draw("test", budget.test_items)
    # Overlapping tokens only: there is no objective here that a complementary one would answer.
    count = budget.overlapping
    narrow = dataclasses.replace(budget, tokens=count, overlapping=count)
    config = training_options(variant, narrow, seed, budget.train_items)
    head = trained_head(variant, config, one.features, one.split("train"))
    probed = ProbedTokens(head, one.features, two.features, budget.probe_items)
    return order_scores(probed, one, two, pairs.canonical(), seed)


def _fingerprint(kind: str, variant: Variant, budget: Budget) -> str:
    sizes = FactorSizes() if kind == "factors" else LinearSizes()
    config = training_options(variant, budget, 0, budget.train_items).to_dict()
    parts = [
        VERSIONS[kind],
        kind,
        dataclasses.asdict(sizes),
        dataclasses.asdict(budget),
        config,
        variant.trained,
        variant.width,
    ]
    return hash_json(parts)


def _last(by_k: dict[str, Any]) -> Any:
    return by_k[max(by_k, key=int)]


def _with_interval(figure: dict[str, dict[str, float]]) -> str:
    return f"{_cell(figure['mean'])} ({figure['low']['mean']:.3f} to {figure['high']['mean']:.3f})"


def _cell(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.3f} ± {figure['deviation']:.3f}"
