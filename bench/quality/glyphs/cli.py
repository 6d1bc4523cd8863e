"""Proof on glyphs: nested register tokens against other heads and separate models, and what each token knows.

Every variant of bench/quality/glyphs/variants.py is trained with every seed, as a process of its own with one thread;
what is finished is kept at once, and a second call goes on where the first stopped. Every variant has the same
features, number of steps, batch size, optimizer and schedule, and is chosen by validation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.quality.glyphs.job import Budget, budget_options, fingerprint, job_config, job_inputs, run_job
from bench.quality.glyphs.picture import draw as draw_picture
from bench.quality.glyphs.retrieval import HITS_AT
from bench.quality.glyphs.summary import summarize
from bench.quality.glyphs.tables import tables
from bench.quality.glyphs.variants import Variant, variants
from bench.quality.report import ResultStore, machine_info, one_thread
from fluxtalk.artifacts.files import hash_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import TrainingError
from fluxtalk.train.inputs import Inputs

ALWAYS = ("specified", "aggregation=concat")
"""Ablations that the comparisons need."""
PICTURE = Path("docs/images/quality-glyphs.png")


@dataclass(frozen=True)
class Job:
    """One variant with one seed."""

    variant: Variant
    seed: int
    fingerprint: str

    @property
    def name(self) -> str:
        """Names of the sections in the results file."""
        return f"{self.variant.name}/{self.seed}"


@click.command()
@click.option(
    "-o",
    "--output",
    default="bench/results/quality/glyphs.json",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The results file, which also keeps what an interrupted call has finished.",
)
@option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Seeds 0, 1, ... of every variant.")
@option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Processes, of one thread each.")
@option("--cache_dir", default=None, help="Cache of renderings and features.  [default: ~/.cache/fluxtalk]")
@click.option(
    "--ablations/--no-ablations",
    default=True,
    help="Also train the register tokens with each option changed.",
)
@option("--quick", is_flag=True, help="A smoke test in this process: a few steps, characters and one seed.")
@option("--draw", is_flag=True, help=f"Draw {PICTURE} from the results.")
@option("--picture", default=PICTURE, type=click.Path(path_type=Path), help="Where --draw draws.", show_default=True)
@budget_options
@debug_option
@sentence_errors
def main(
    output: Path,
    seeds: int,
    workers: int,
    cache_dir: str | None,
    ablations: bool,
    quick: bool,
    draw: bool,
    picture: Path,
    **given: Any,
) -> None:
    """Train and measure every variant that OUTPUT does not hold yet, and print the tables."""
    budget = Budget.quick() if quick else Budget(**given)
    seeds = 1 if quick else seeds
    inputs = job_inputs(budget, cache_dir)
    known = {name: v for name, v in variants().items() if ablations or v.kind != "ablation" or name in ALWAYS}
    jobs = _plan(list(known.values()), range(seeds), budget, inputs)
    store = ResultStore(output)
    missing = [job for job in jobs if store.get(job.name, job.fingerprint) is None]
    click.echo(f"{len(jobs)} runs, of which {len(missing)} are to be done")
    # The workers find the features encoded.
    for split in inputs.dataset.splits:
        inputs.sources(split)
    done = _in_process(missing, budget, inputs) if quick else _in_processes(missing, budget, cache_dir, workers)
    _keep(store, done, len(missing))
    results = {name: [store.get(j.name, j.fingerprint) for j in jobs if j.variant.name == name] for name in known}
    queries = int(inputs.dataset.split("test").items["text"].counted.sum())
    summary = {
        **machine_info(),
        "workers": workers,
        "seeds": seeds,
        "budget": dataclasses.asdict(budget),
        "data_hash": inputs.dataset.content_hash,
        "stage1_hash": inputs.stage1.content_hash(),
        **summarize({name: [r for r in found if r] for name, found in results.items()}, known, queries),
    }
    store.finish([job.name for job in jobs], summary)
    click.echo(tables(summary))
    if draw:
        draw_picture(summary, picture)
        click.echo(f"{picture}")


def _plan(chosen: Sequence[Variant], seeds: Sequence[int], budget: Budget, inputs: Inputs) -> list[Job]:
    """All jobs, seed by seed, so that an interrupted call leaves whole comparisons."""
    return [
        Job(v, seed, fingerprint(job_config(v, seed, budget, Path(), None), budget, inputs))
        for seed in seeds
        for v in chosen
    ]


def _keep(store: ResultStore, done: Iterator[tuple[Job, dict[str, Any]]], count: int) -> None:
    started = time.monotonic()
    for number, (job, result) in enumerate(done, start=1):
        store.put(job.name, job.fingerprint, result)
        elapsed = time.monotonic() - started
        recall = " ".join(f"{100 * by_k[max(by_k, key=int)][str(HITS_AT)]:.1f}" for by_k in result["recall"].values())
        click.echo(
            f"{number}/{count} {job.name}: R@10 {recall} % in {result['seconds']:.0f} s; "
            f"{elapsed / number * (count - number) / 60:.0f} min left"
        )


def _in_process(jobs: Sequence[Job], budget: Budget, inputs: Inputs) -> Iterator[tuple[Job, dict[str, Any]]]:
    for job in jobs:
        with one_thread():
            result = run_job(job.variant, job.seed, budget, inputs)
        yield job, result


def _in_processes(
    jobs: Sequence[Job], budget: Budget, cache_dir: str | None, workers: int
) -> Iterator[tuple[Job, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(_process, job, budget, cache_dir, Path(folder)): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            # One that failed, or Ctrl-C: what has not begun never does.
            pool.shutdown(wait=False, cancel_futures=True)


def _process(job: Job, budget: Budget, cache_dir: str | None, folder: Path) -> dict[str, Any]:
    output = folder / f"{hash_json(job.name)}.json"
    options = {**dataclasses.asdict(budget), "variant": job.variant.name, "seed": job.seed, "cache_dir": cache_dir}
    arguments = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "bench.quality.glyphs.job", "-o", str(output), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise TrainingError(
            f"The run {job.name} ended with status {done.returncode} ({said[-1].removeprefix('error: ').rstrip('.')}); "
            "start the benchmark again to go on with the others."
        )
    content: dict[str, Any] = json.loads(output.read_text())
    return content
