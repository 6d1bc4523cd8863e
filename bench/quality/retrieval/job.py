"""One head trained on one task with one seed, and what it finds.

``python -m bench.quality.retrieval.job --task NAME --variant NAME --seed S -o FILE`` is what `bench.quality.retrieval`
runs, two at a time, each with one thread.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bench.quality.packed import packed
from bench.quality.report import write_results
from bench.quality.retrieval.registry import task_options, tasks
from bench.quality.retrieval.tasks import ITEM, QUERY, Search, Task, task_named
from bench.quality.retrieval.variants import Variant, variant_named
from fluxtalk.artifacts.files import Identity, hash_json
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.config import HeadConfig
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import TrainingError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.scoring.metrics import first_hit_ranks, recall_at
from fluxtalk.scoring.retrieval import ItemTokens
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.loop.sampler import PairSampler
from fluxtalk.train.records.log import RunLog
from fluxtalk.train.results.score import all_tokens

VERSION = 1
"""Increased when the same options train or score differently: results of earlier versions are not reused."""
HITS_AT = 10
_VALIDATIONS = 8


@dataclass(frozen=True)
class Budget:
    """Steps and sizes, the same for every head."""

    steps: int = 500
    """Rounded to whole epochs."""
    batch_size: int = 128
    dim: int = 192
    """Width of heads whose tokens have a width of their own."""


BUDGETS = {"glyphs": Budget(steps=500, batch_size=256), "icons": Budget(steps=408, batch_size=256, dim=256)}
"""Budgets of tasks that do not have the usual one."""


def job_config(variant: Variant, seed: int, budget: Budget, tuned: Mapping[str, Any], task: Task) -> TrainConfig:
    """Give the training options of a job."""
    steps_per_epoch = max(1, len(task.train.split.ids) // budget.batch_size)
    epochs = max(1, round(budget.steps / steps_per_epoch))
    common: dict[str, Any] = {
        "batch_size": budget.batch_size,
        "dim": budget.dim,
        "heads": 4,
        "dropout": 0.1,
        "feature_dropout": 0.1,
        "learning_rate": 2e-3,
        "epochs": epochs,
        "eval_every": max(1, epochs // _VALIDATIONS),
        "seed": seed,
        "device": "cpu",
    }
    return TrainConfig("in memory", "in memory", "job", **{**common, **variant.options, **tuned})


def fingerprint(config: TrainConfig, task: Task) -> str:
    """Hash all that a job's result depends on, but its head, which its name says."""
    # Options that came later and are not used may not make results of before look like others.
    unused = {("nested_dims", ""), ("track", ""), ("summary_registers", 1), ("mean_path_width", 4), ("regions", "")}
    options = {name: value for name, value in config.to_dict().items() if (name, value) not in unused}
    return hash_json([VERSION, options, task.content_hash])


def run_job(variant: Variant, config: TrainConfig, task: Task) -> tuple[TokenHead, dict[str, Any]]:
    """Train one head, and score it on validation.

    Returns:
        The head with its best weights; and ``score``, the mean recall on validation over kinds of query, sizes and
        cut-offs, beside what the training took.

    Raises:
        TrainingError: training did not end.
    """
    trainer = make_trainer(variant, config, task)
    head = trainer.head
    validating = [0.0]

    def validate(tried: TokenHead) -> dict[str, Any]:
        begin = time.process_time()
        found = validation_score(tried, variant, task)
        validating[0] += time.process_time() - begin
        return found

    started, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "job")
        run.root.mkdir()
        if not trainer.run(run, RunLog(trainer.identity, None, active=False), validate):
            raise TrainingError("Training was stopped by a signal before its end; start the benchmark again to go on.")
        head.load_state_dict(dict(load_head(run.best).weights))
    spent = time.process_time() - cpu - validating[0]
    return head, {
        "score": validate(head)["score"],
        "steps": trainer.steps,
        "best_share": round(trainer.state.best_epoch / config.epochs, 3),
        "cpu_seconds_per_step": round(spent / trainer.steps, 4),
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": sum(p.numel() for p in head.parameters()),
    }


def make_trainer(variant: Variant, config: TrainConfig, task: Task) -> Trainer:
    """Build the training of a new head on a task's pairs."""
    torch.manual_seed(config.seed)
    head = build_head(variant, config, task)
    sampler = PairSampler(task.train.split, config.batch_size, 1, 0, config.seed, 1, 1)
    return Trainer(config, head, task.train.sources, sampler, SingleProcess(), "in memory", Identity())


def validation_score(head: TokenHead, variant: Variant, task: Task) -> dict[str, Any]:
    """Score a head on validation: ``recall``, and its mean over kinds of query, sizes and cut-offs, ``score``."""
    found = {kind: score_search(head, variant, search)["recall"] for kind, search in task.validation.items()}
    values = [v for each in found.values() for by_k in each.values() for r in by_k.values() for v in r.values()]
    return {"score": float(np.mean(values)), "recall": found}


def test_scores(head: TokenHead, variant: Variant, task: Task) -> dict[str, Any]:
    """Score a trained head on the test split: kind of query to `score_search`."""
    return {kind: score_search(head, variant, search) for kind, search in task.test.items()}


def build_head(variant: Variant, config: TrainConfig, task: Task) -> TokenHead:
    """Build the untrained head of a job."""
    shared = {name: getattr(config, name) for name in HeadConfig.__dataclass_fields__ if name != "dims"}
    return variant.build(HeadConfig(dims=task.dims, **shared), config.seed)


def score_search(head: TokenHead, variant: Variant, search: Search, width: int | None = None) -> dict[str, Any]:
    """Score a head's tokens at each of the variant's sizes.

    Args:
        width: numbers of each token that are kept, the first ones; None keeps all.

    Returns:
        ``recall[direction][size][cut-off]``; and ``hits[direction][size]``, one bit per query (`packed`): whether what
        it asks for is among the first 10. A query that names a part has the direction from text to image alone.
    """
    tokens = {m: all_tokens(head, m, source, search.counted[m])[..., :width] for m, source in search.sources.items()}
    config = head.config
    items = {m: ItemTokens(t, config.num_overlapping_tokens, config.aggregation) for m, t in tokens.items()}
    asked = {m: np.isin(groups, search.groups[ITEM if m == QUERY else QUERY]) for m, groups in search.groups.items()}
    recall: dict[str, dict[str, Any]] = {}
    hits: dict[str, dict[str, str]] = {}
    for source, target in ((QUERY, ITEM), (ITEM, QUERY)):
        of, among = search.groups[source][asked[source]], search.groups[target]
        direction = f"{source}->{target}"
        recall[direction], hits[direction] = {}, {}
        for k in variant.counts:
            ranks = first_hit_ranks(items[source].prefix(k)[asked[source]], items[target].prefix(k), of, among)
            recall[direction][str(k)] = recall_at(ranks)
            hits[direction][str(k)] = packed(ranks < HITS_AT)
    return {
        "recall": recall,
        "hits": hits,
        "queries": {f"{QUERY}->{ITEM}": int(asked[QUERY].sum()), f"{ITEM}->{QUERY}": int(asked[ITEM].sum())},
    }


@click.command()
@option("--task", required=True, help="Name of a task.")
@option("--variant", required=True, help="Name of a head in bench/quality/retrieval/variants.py.")
@option("--seed", default=0, show_default=True, type=int, help="Random seed.")
@option("--tuned", default="{}", help="JSON object of the options that the sweep chose.")
@option("--budget", default="{}", help="JSON object of a budget that is not the task's own.")
@option("--test", is_flag=True, help="Score on the test split too; without it, on validation alone.")
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="File of the trained weights.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The JSON file to write.")
@task_options
@debug_option
@sentence_errors
def main(
    task: str, variant: str, seed: int, tuned: str, budget: str, test: bool, weights: Path, output: Path, **places: Any
) -> None:
    """Train one head on one task in one thread, and write OUTPUT; weights that exist are scored as they are."""
    torch.set_num_threads(1)
    made = task_named(task, tasks(**places))
    head = variant_named(variant, task)
    given = dataclasses.replace(BUDGETS.get(task, Budget()), **json.loads(budget))
    run_and_write(head, job_config(head, seed, given, json.loads(tuned), made), made, test, weights, output)


def run_and_write(variant: Variant, config: TrainConfig, task: Task, test: bool, weights: Path, output: Path) -> None:
    """Train one head and keep its weights, or take those that are kept; score it, and write the result.

    Args:
        test: score it on the test split too, and take weights that are there.
    """
    result: dict[str, Any] = {}
    if test and weights.is_file():
        trained = build_head(variant, config, task)
        trained.load_state_dict(load_file(weights))
    else:
        trained, result = run_job(variant, config, task)
        save_file({name: value.contiguous() for name, value in trained.state_dict().items()}, weights)
    write_results(output, {**result, **({"test": test_scores(trained, variant, task)} if test else {})})


if __name__ == "__main__":
    main()
