"""Effects of options that the recipe does not have on a task of the proof: hard negatives, nested sizes, a sweep.

``python -m bench.quality.retrieval.options --task NAME`` trains the head of the recipe with each of them, with the
task's budget, in one thread. A recipe would take what is best on validation; the test split says what it is worth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bench.markdown import markdown_table, replace_between
from bench.quality.report import ResultStore, machine_info, one_thread, percent
from bench.quality.retrieval.job import (
    BUDGETS,
    Budget,
    fingerprint,
    job_config,
    make_trainer,
    run_job,
    score_search,
    validation_score,
)
from bench.quality.retrieval.registry import task_options, tasks
from bench.quality.retrieval.summary import DIRECTION, over_seeds
from bench.quality.retrieval.tables import KIND_TITLES
from bench.quality.retrieval.tasks import Task, task_named
from bench.quality.retrieval.variants import TOKEN_DIM, Variant, variant_named
from fluxtalk.artifacts.files import Identity
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.sweep import SWEPT, Sweep

WIDTHS = (16, 32, TOKEN_DIM)
"""Numbers of each token at which heads are compared; those below the whole token are trained by ``nested-dims``."""
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("the recipe", {}),
    "hard-negatives": ("`--hard-negatives 4`", {"hard_negatives": 4}),
    "nested-dims": ("`--nested-dims 16,32`", {"nested_dims": "16,32"}),
    "sweep": ("`--sweep small`", {"sweep": "small"}),
}
"""Name to label and training options."""
_TUNED = {"token_dropout": 0.1}
"""What validation chose for the recipe's head on every task of several things."""


def swept(variant: Variant, config: TrainConfig, task: Task) -> TrainConfig:
    """Let the sweep choose options by validation, as `fluxtalk-train --sweep small` does."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(config, Path(folder) / "sweep.json")
        sweep.run(
            lambda tried: make_trainer(variant, tried, task),
            lambda head: validation_score(head, variant, task),
            Identity(),
            click.echo,
        )
        return sweep.result()


def run_option(name: str, seed: int, budget: Budget, task: Task) -> dict[str, Any]:
    """Train a head with one option and one seed.

    Returns:
        ``score`` on validation and what training took (`run_job`); ``chosen``, the sweep's choice; and
        ``test[kind][width][k][cut-off]``, recall from text to image.
    """
    variant = variant_named("concat", task.name)
    config = job_config(variant, seed, budget, {**_TUNED, **OPTIONS[name][1]}, task)
    chosen = swept(variant, config, task) if config.sweep != "none" else config
    head, result = run_job(variant, chosen, task)
    test = {
        kind: {str(w): score_search(head, variant, search, w)["recall"][DIRECTION] for w in WIDTHS}
        for kind, search in task.test.items()
    }
    return {**result, "chosen": {option: getattr(chosen, option) for option in SWEPT}, "test": test}


def table(results: Mapping[str, Any]) -> str:
    """Write R@10 from text to image on the test split, in percent, by option, width and number of tokens."""
    kinds = list(next(iter(results.values()))["test"])
    rows = []
    for name, result in results.items():
        for width in WIDTHS:
            by_k = {kind: result["test"][kind][str(width)] for kind in kinds}
            for k in (min(by_k[kinds[0]], key=int), max(by_k[kinds[0]], key=int)):
                whole = width == TOKEN_DIM
                rows.append(
                    [
                        OPTIONS[name][0],
                        f"{k} x {width}",
                        f"{4 * int(k) * width:,}",
                        *(percent(by_k[kind][k]["10"]) for kind in kinds),
                        percent(result["score"]) if whole else "",
                        f"{1e3 * result['cpu_seconds_per_step']['mean']:.0f}" if whole else "",
                    ]
                )
    found = [f"{KIND_TITLES[kind]} R@10" for kind in kinds]
    head = ["option", "tokens x numbers", "bytes", *found, "score on validation", "ms of a step"]
    return markdown_table(head, rows)


@click.command()
@option("--task", required=True, help="Name of a task.")
@option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Seeds 0, 1, ... of every option.")
@option("--steps", default=None, type=click.IntRange(min=1), help="Steps of every head.  [default: the task's own]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Results file.  [default: by the task's name]")
@option("--docs", type=click.Path(path_type=Path, dir_okay=False), help="Document to write the table into.")
@task_options
@debug_option
@sentence_errors
def main(task: str, seeds: int, steps: int | None, output: Path | None, docs: Path | None, **places: Any) -> None:
    """Train what OUTPUT does not hold yet, and print the table."""
    made = task_named(task, tasks(**places))
    budget = BUDGETS.get(task, Budget())
    budget = Budget(steps or budget.steps, budget.batch_size, budget.dim)
    store = ResultStore(output or Path(f"bench/results/quality/options-{task}.json"))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in OPTIONS}
    with one_thread():
        for seed in range(seeds):
            for name, (_, given) in OPTIONS.items():
                job = f"{name}/{seed}"
                config = job_config(variant_named("concat", task), seed, budget, {**_TUNED, **given}, made)
                mark = fingerprint(config, made)
                result = store.get(job, mark)
                if result is None:
                    result = run_option(name, seed, budget, made)
                    store.put(job, mark, result)
                    click.echo(f"{job}: validation {100 * result['score']:.1f} % in {result['seconds']:.0f} s")
                found[name].append(result)
        compared = ("score", "cpu_seconds_per_step", "test")
        results = {n: over_seeds([{key: run[key] for key in compared} for run in runs]) for n, runs in found.items()}
        summary = {**machine_info(), "task": task, "seeds": seeds, "data_hash": made.content_hash, "results": results}
        store.finish([f"{name}/{seed}" for name in OPTIONS for seed in range(seeds)], summary)
    click.echo(table(results))
    if docs is not None:
        replace_between(docs, f"<!-- options-{task}: begin -->", f"<!-- options-{task}: end -->", [table(results)])


if __name__ == "__main__":
    main()
