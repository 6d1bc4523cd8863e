"""One variant trained on glyphs with one seed, and all that is measured of it.

``python -m bench.quality.glyphs.job --variant NAME --seed S -o FILE`` is what `bench.quality.glyphs` runs, several at
a time, each with one thread.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench.quality.glyphs import probe as glyphs_probe
from bench.quality.glyphs.retrieval import Sources, held_out_scores, validation_score
from bench.quality.glyphs.variants import Variant, variant_named
from bench.quality.report import write_results
from fluxtalk.arrays import Floats
from fluxtalk.artifacts.files import Identity, hash_json
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.datasets import Items, PairDataset, Split
from fluxtalk.errors import TrainingError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.inputs import Inputs, build_sampler, read_inputs
from fluxtalk.train.records.log import RunLog

STAGE1 = Path(__file__).parents[2] / "stage1" / "glyphs.pth"
VERSION = 1
"""Increased when the same options train or score differently: results of earlier versions are not reused."""
_PLACES = ("stage1_checkpoint", "output_dir", "log_name", "cache_dir", "device", "seed")
"""Options that say where a run is, not what it is."""
_VALIDATIONS = 8


@dataclass(frozen=True)
class Budget:
    """Data, steps and sizes, the same for every variant."""

    steps: int = 1000
    """Rounded to whole epochs."""
    batch_size: int = 256
    dim: int = 192
    probe_images: int = 20_000
    """Training images that probes are fitted to."""
    characters: int | None = None
    """Characters of each split; None is all."""

    @classmethod
    def quick(cls) -> Budget:
        """A smoke test: the whole path, no figure of meaning."""
        return cls(steps=2, batch_size=32, dim=16, probe_images=200, characters=48)


def job_config(variant: Variant, seed: int, budget: Budget, folder: Path, cache_dir: str | None) -> TrainConfig:
    """The training options of a job, but for the epochs, which depend on the data."""
    return variant.config(
        stage1_checkpoint=str(STAGE1),
        output_dir=str(folder),
        log_name="job",
        cache_dir=cache_dir,
        batch_size=budget.batch_size,
        dim=budget.dim,
        heads=8,
        learning_rate=2e-3,
        seed=seed,
        device="cpu",
    )


def job_inputs(budget: Budget, cache_dir: str | None) -> Inputs:
    """The frozen encoders and the characters of the budget."""
    config = TrainConfig(str(STAGE1), "", "job", cache_dir=cache_dir, device="cpu")
    inputs = read_inputs(config, SingleProcess(), torch.device("cpu"))
    if budget.characters is None:
        return inputs
    return dataclasses.replace(inputs, dataset=first_characters(inputs.dataset, budget.characters))


def fingerprint(config: TrainConfig, budget: Budget, inputs: Inputs) -> str:
    """A hash of all that a job's result depends on, but its seed and head, which its name says."""
    what = {name: value for name, value in config.to_dict().items() if name not in _PLACES}
    data = [inputs.dataset.content_hash, inputs.stage1.content_hash()]
    return hash_json([VERSION, what, dataclasses.asdict(budget), data])


def run_job(variant: Variant, seed: int, budget: Budget, inputs: Inputs) -> dict[str, Any]:
    """Train and measure one variant with one seed, as the results file keeps it.

    Returns:
        `held_out_scores`, ``probe[vector][factor]`` and what the training took.

    Raises:
        TrainingError: training did not end.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = job_config(variant, seed, budget, Path(folder), str(inputs.cache_dir))
        sampler = build_sampler(config, inputs, SingleProcess())
        epochs = max(1, round(budget.steps / sampler.steps_per_epoch))
        config = dataclasses.replace(config, epochs=epochs, eval_every=max(1, epochs // _VALIDATIONS))
        torch.manual_seed(seed)
        head = variant.build(inputs.head_config(config), seed)
        sources = {split: inputs.sources(split) for split in inputs.dataset.splits}
        probes = _Probes(inputs.dataset, sources, budget.probe_images)
        controls = probes.controls(head) if variant.kind == "main" else {}
        trained = _train(head, config, inputs, sources, RunFolder(Path(folder) / "job"))
    test = inputs.dataset.split("test")
    return {
        **held_out_scores(head, sources["test"], test),
        "probe": {**controls, **probes.trained(head)},
        "parameters": sum(p.numel() for p in head.parameters()),
        **trained,
        "seconds": round(time.perf_counter() - started, 1),
    }


def first_characters(dataset: PairDataset, count: int) -> PairDataset:
    """The data set with the first ``count`` ids of every split."""
    return PairDataset(
        dataset.name,
        dataset.modalities,
        {name: _first_ids(split, count) for name, split in dataset.splits.items()},
        hash_json([dataset.content_hash, count]),
    )


def _first_ids(split: Split, count: int) -> Split:
    return Split(
        split.name,
        split.ids[:count],
        {m: _first_items(items, int(np.searchsorted(items.groups, count))) for m, items in split.items.items()},
        split.seen[:count],
    )


def _first_items(items: Items, count: int) -> Items:
    labels = {name: values[:count] for name, values in items.labels.items()}
    return Items(items.values[:count], items.groups[:count], items.counted[:count], labels)


def _train(
    head: TokenHead, config: TrainConfig, inputs: Inputs, sources: Mapping[str, Sources], folder: RunFolder
) -> dict[str, Any]:
    """Train a head as a run is, and leave it with the weights that are best by what it was trained for."""
    group, identity = SingleProcess(), Identity()
    sampler = build_sampler(config, inputs, group)
    trainer = Trainer(config, head, sources["train"], sampler, group, inputs.stage1.content_hash(), identity)
    validation = inputs.dataset.split("validation")
    started = time.perf_counter()
    if not trainer.run(
        folder,
        RunLog(identity, None, active=False),
        lambda tried: validation_score(tried, sources["validation"], validation),
    ):
        raise TrainingError("Training was stopped by a signal before its end; start the benchmark again to go on.")
    seconds = time.perf_counter() - started
    head.load_state_dict(dict(load_head(folder.best).weights))
    return {
        "steps": trainer.steps,
        "best_share": round(trainer.state.best_epoch / config.epochs, 3),
        "seconds_per_step": round(seconds / trainer.steps, 4),
    }


class _Probes:
    """Type-face probes of one job."""

    def __init__(self, dataset: PairDataset, sources: Mapping[str, Sources], images: int) -> None:
        train, test = (sources[split][glyphs_probe.MODALITY] for split in ("train", "test"))
        self._data = glyphs_probe.probe_data((dataset.split("train"), dataset.split("test")), (train, test), images)

    def controls(self, untrained: TokenHead) -> dict[str, dict[str, float]]:
        """Controls for a trained token: the same token before training, the features, and no look at all."""
        return {
            "untrained": self._of(glyphs_probe.complementary_vectors(untrained, self._data)),
            "raw": self._of(glyphs_probe.raw_vectors(self._data)),
            "majority": glyphs_probe.majority(self._data),
        }

    def trained(self, head: TokenHead) -> dict[str, dict[str, float]]:
        """Probes of the shared embedding, and of the complementary tokens if there are any."""
        found = {"shared": self._of(glyphs_probe.shared_vectors(head, self._data))}
        if head.config.num_register_tokens > head.config.num_overlapping_tokens:
            found["complementary"] = self._of(glyphs_probe.complementary_vectors(head, self._data))
        return found

    def _of(self, vectors: tuple[Floats, Floats]) -> dict[str, float]:
        return glyphs_probe.accuracy(*vectors, self._data)


def budget_options(command: Any) -> Any:
    """The options that a job and the benchmark share."""
    default = Budget()
    for name, text in (
        ("characters", "Characters of each split.  [default: all]"),
        ("probe_images", "Training images that type-face probes are fitted to."),
        ("dim", "Width of every head."),
        ("batch_size", "Pairs per step."),
        ("steps", "Steps of every variant, rounded to whole epochs."),
    ):
        command = option(
            f"--{name}", default=getattr(default, name), show_default=True, type=click.IntRange(min=1), help=text
        )(command)
    return command


@click.command()
@option("--variant", required=True, help="Name of a variant in bench/quality/glyphs/variants.py.")
@option("--seed", default=0, show_default=True, type=int, help="Random seed.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The JSON file to write.")
@option("--cache_dir", default=None, help="Cache of renderings and features.  [default: ~/.cache/fluxtalk]")
@budget_options
@debug_option
@sentence_errors
def main(variant: str, seed: int, output: Path, cache_dir: str | None, **budget: Any) -> None:
    """Train one variant with one seed in one thread, measure it, and write OUTPUT."""
    torch.set_num_threads(1)
    given = Budget(**budget)
    write_results(output, run_job(variant_named(variant), seed, given, job_inputs(given, cache_dir)))


if __name__ == "__main__":
    main()
