"""Proof on retrieval: every head on every task, tuned alike, chosen by validation, scored once on the test split.

For each task, every head is first trained with every point of the sweep (variants.py) and one seed; validation chooses
the point; then it is trained with every seed, and only then scored on the test split. What is finished is kept at once
in one file per task, and a second call goes on where the first stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.markdown import replace_between
from bench.quality.report import ResultStore, machine_info, one_thread
from bench.quality.retrieval.job import BUDGETS, Budget, fingerprint, job_config, run_and_write
from bench.quality.retrieval.picture import draw as draw_pictures
from bench.quality.retrieval.registry import TASKS, task_options, tasks
from bench.quality.retrieval.summary import summarize
from bench.quality.retrieval.tables import tables
from bench.quality.retrieval.tasks import Task
from bench.quality.retrieval.variants import Variant, sweep_points, variants
from fluxtalk.artifacts.files import hash_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.datasets import default_cache_dir
from fluxtalk.errors import TrainingError, UsageError

RESULTS = Path("bench/results/quality")
PICTURES = Path("docs/images")


@dataclass(frozen=True)
class Job:
    """One head with one seed and one choice of options."""

    task: str
    variant: Variant
    seed: int
    tuned: dict[str, Any]
    test: bool
    fingerprint: str

    @property
    def name(self) -> str:
        """Name in the results file."""
        words = "_".join(f"{option}={value:g}" for option, value in self.tuned.items())
        return f"{self.variant.name}/{self.seed}/{words}{'/test' * self.test}"


@dataclass(frozen=True)
class Runner:
    """Runs jobs of one task, several at a time, and keeps what each gives."""

    task: str
    budget: Budget
    store: ResultStore
    weights: Path
    places: dict[str, Any]
    workers: int
    made: Task

    def plan(self, variant: Variant, seed: int, tuned: dict[str, Any], test: bool) -> Job:
        """Make a job, with the fingerprint of all that its result depends on."""
        config = job_config(variant, seed, self.budget, tuned, self.made)
        return Job(self.task, variant, seed, tuned, test, fingerprint(config, self.made))

    def results(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Run the jobs that the store does not have, and give the results of all."""
        missing = [job for job in jobs if self.store.get(job.name, job.fingerprint) is None]
        started = time.monotonic()
        for number, (job, result) in enumerate(self._done(missing), start=1):
            self.store.put(job.name, job.fingerprint, result)
            left = (time.monotonic() - started) / number * (len(missing) - number) / 60
            click.echo(f"{self.task} {number}/{len(missing)} {job.name}: {_said(result)}; {left:.0f} min left")
        found = [self.store.get(job.name, job.fingerprint) for job in jobs]
        return [result for result in found if result is not None]

    def _done(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(1, self.workers)) as pool:
            running = {pool.submit(self._process, job, Path(folder)): job for job in jobs}
            try:
                for future in as_completed(running):
                    yield running[future], future.result()
            finally:
                # One that failed, or Ctrl-C: what has not begun never does.
                pool.shutdown(wait=False, cancel_futures=True)

    def _process(self, job: Job, folder: Path) -> dict[str, Any]:
        output = folder / f"{hash_json(job.name)}.json"
        self.weights.mkdir(parents=True, exist_ok=True)
        weights = self.weights / f"{hash_json([self.task, job.variant.name, job.fingerprint])[:32]}.safetensors"
        if not self.workers:
            config = job_config(job.variant, job.seed, self.budget, job.tuned, self.made)
            with one_thread():
                run_and_write(job.variant, config, self.made, job.test, weights, output)
            return dict(json.loads(output.read_text()))
        words = {
            "task": job.task,
            "variant": job.variant.name,
            "seed": job.seed,
            "tuned": json.dumps(job.tuned),
            "budget": json.dumps(dataclasses.asdict(self.budget)),
            "weights": weights,
            **{name.replace("_", "-"): value for name, value in self.places.items() if value is not None},
        }
        arguments = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "bench.quality.retrieval.job",
                "-o",
                str(output),
                *arguments,
                *["--test"] * job.test,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("error: ").rstrip(".")
            raise TrainingError(
                f"The run {job.name} ended with status {done.returncode} ({said}); "
                "start the benchmark again to go on with the others."
            )
        content: dict[str, Any] = json.loads(output.read_text())
        return content


@click.command()
@option("--task", "chosen", multiple=True, help="Task to run; repeat for several.  [default: all whose data are there]")
@option("--variant", "named", multiple=True, help="Head to run; repeat for several.  [default: all]")
@option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Seeds 0, 1, ... of every head.")
@option("--steps", default=None, type=click.IntRange(min=1), help="Steps of every head.  [default: the task's own]")
@option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(min=0),
    help="Processes, of one thread each; 0 runs all in this one.",
)
@option("--results", default=RESULTS, show_default=True, type=click.Path(path_type=Path), help="Folder of the results.")
@option("--draw", is_flag=True, help=f"Draw {PICTURES}/quality-TASK.png from the results.")
@option("--pictures", default=PICTURES, show_default=True, type=click.Path(path_type=Path), help="Where --draw draws.")
@option("--docs", type=click.Path(path_type=Path, dir_okay=False), help="Document to write the tables into.")
@task_options
@debug_option
@sentence_errors
def main(
    chosen: tuple[str, ...],
    named: tuple[str, ...],
    seeds: int,
    steps: int | None,
    workers: int,
    results: Path,
    draw: bool,
    pictures: Path,
    docs: Path | None,
    **places: Any,
) -> None:
    """Train and measure every head that the results do not hold yet, and print the tables."""
    known = tasks(**places)
    for name in chosen or [name for name in TASKS if name in known]:
        summary = run_task(name, known, named, seeds, steps, workers, results, places)
        click.echo(tables(summary))
        if docs is not None:
            replace_between(docs, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", [tables(summary)])
        if draw:
            draw_pictures(summary, pictures / f"quality-{name}.png")
            click.echo(f"{pictures / f'quality-{name}.png'}")


def run_task(
    name: str,
    known: dict[str, Callable[[], Task]],
    named: Sequence[str],
    seeds: int,
    steps: int | None,
    workers: int,
    results: Path,
    places: dict[str, Any],
) -> dict[str, Any]:
    """Run what is missing of one task; give the summary that its results file begins with.

    Raises:
        UsageError: the task or a head is unknown.
        TrainingError: a run failed.
    """
    heads = variants(name)
    unknown = [head for head in named if head not in heads]
    if name not in known or unknown:
        raise UsageError(
            f"Tasks whose data are there are {', '.join(known)}, and heads are {', '.join(heads)}; "
            f"got {', '.join(unknown) or name}."
        )
    budget = BUDGETS.get(name, Budget())
    budget = dataclasses.replace(budget, steps=steps or budget.steps)
    started = time.monotonic()
    store = ResultStore(results / f"retrieval-{name}.json")
    weights = default_cache_dir(places.get("cache_dir")) / "quality"
    runner = Runner(name, budget, store, weights, places, workers, known[name]())
    variants_run = [head for head in heads.values() if not named or head.name in named]
    tuned, swept = choose_options(runner, variants_run)
    final = [
        runner.plan(head, seed, tuned[head.tuned_as or head.name], True)
        for seed in range(seeds)
        for head in variants_run
    ]
    found = runner.results(final)
    summary = {
        **machine_info(),
        "task": name,
        "label": runner.made.label,
        "seeds": seeds,
        "workers": workers,
        "budget": dataclasses.asdict(budget),
        "data_hash": runner.made.content_hash,
        "minutes_of_this_call": round((time.monotonic() - started) / 60, 1),
        "sweep": sweep_points(),
        "tuned": {head.name: tuned[head.tuned_as or head.name] for head in variants_run},
        **summarize(
            {h.name: [r for j, r in zip(final, found, strict=True) if j.variant.name == h.name] for h in variants_run},
            swept,
            name,
        ),
    }
    sweep = [runner.plan(heads[head], 0, point, False).name for head in swept for point in sweep_points()]
    store.finish([*sweep, *(job.name for job in final)], summary)
    return summary


def choose_options(
    runner: Runner, heads: Sequence[Variant]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Sweep every head with one seed, and choose for each the options that are best on validation.

    Returns:
        Head to its options; and head to its sweep's results.
    """
    points = sweep_points()
    swept = [variants(runner.task)[name] for name in dict.fromkeys(head.tuned_as or head.name for head in heads)]
    jobs = [runner.plan(head, 0, point, False) for head in swept for point in points]
    found = list(zip(jobs, runner.results(jobs), strict=True))
    of_head = {head.name: [(job, result) for job, result in found if job.variant.name == head.name] for head in swept}
    tuned = {name: max(each, key=lambda one: one[1]["score"])[0].tuned for name, each in of_head.items()}
    return tuned, {name: [result for _, result in each] for name, each in of_head.items()}


def _said(result: dict[str, Any]) -> str:
    if "test" in result:
        cells = [
            f"{kind} {100 * by_k[max(by_k, key=int)]['10']:.1f}"
            for kind, each in result["test"].items()
            for by_k in list(each["recall"].values())[:1]
        ]
        return f"test R@10 {', '.join(cells)} %"
    return f"validation {100 * result['score']:.1f} % in {result['seconds']:.0f} s"
