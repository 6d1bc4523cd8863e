"""The stages up to a scored run: pack, features, train, evaluate. Each returns what it leaves, for the record."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from fluxtalk.align.budget import choose_budget
from fluxtalk.align.work import Work
from fluxtalk.artifacts.cache import MANIFEST, features_folder
from fluxtalk.artifacts.files import hash_file, write_atomically, write_json
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.artifacts.run import read_description
from fluxtalk.devices.memory import available_memory
from fluxtalk.errors import CheckpointError
from fluxtalk.model.checkpoints.stage1 import save_stage1
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.features.admit import bad_items_report
from fluxtalk.train.features.prebuild import prebuild
from fluxtalk.train.records.record_file import read_records
from fluxtalk.train.results.baseline import measure_baseline
from fluxtalk.train.results.evaluate import Evaluation, evaluate
from fluxtalk.train.run import fit
from fluxtalk.train.stage1.pack import pack_encoders

PROJECTIONS = ("linear", "mlp")
"""Projections of the mean-pool baselines."""


def pack(work: Work) -> dict[str, Any]:
    """Write the encoders into one checkpoint; one that was named stays where it is."""
    request = work.request
    if request.stage1_checkpoint is None:
        encoders, prompts, defaults = request.encoders, request.prompts, request.default_prompts
        stage1 = pack_encoders(encoders, request.data, prompts, defaults, request.allow_code)
        save_stage1(stage1, work.folder.stage1)
        work.forget_stage1()
    for modality, part in work.stage1.modalities.items():
        work.say(f"{modality}: {part.spec.source}, features of dimension {part.spec.dim}")
    return {"stage1": work.stage1_hash}


def packed(work: Work) -> bool:
    """Return whether the checkpoint is whole and the one that was packed."""
    try:
        return bool(work.stage1_hash == work.recorded("pack", "stage1"))
    except CheckpointError:
        return False


def features(work: Work) -> dict[str, Any]:
    """Encode every item once, if it fits on the disk."""
    request, policy = work.request, work.request.bad_items
    with join_process_group(request.device) as (group, device):
        caches = prebuild(
            work.stage1_path, request.data, None, work.cache_dir, request.features, device, group, work.say, policy
        )
    report = bad_items_report(work.stage1, work.whole, work.cache_dir)
    work.folder.bad_items.unlink(missing_ok=True)
    if report.is_file():
        write_atomically(work.folder.bad_items, report.read_text(encoding="utf-8"))
    work.forget_bad_items()
    names = [cache.manifest.key.folder(work.cache_dir).name for part in caches.values() for cache in part.values()]
    return {
        "caches": names,
        "bad_items": _bad_items(work),
        "bytes_per_pair": sum(4 * cache.longest * cache.dim for cache in caches["train"].values()),
    }


def encoded(work: Work) -> bool:
    """Return whether every cache is there, and the record of what was left out."""
    if work.recorded("features", "bad_items") != _bad_items(work):
        return False
    names = work.recorded("features", "caches") or []
    return all((features_folder(work.cache_dir) / name / MANIFEST).is_file() for name in names)


def _bad_items(work: Work) -> str | None:
    return hash_file(work.folder.bad_items) if work.folder.bad_items.is_file() else None


def train(work: Work, resume: bool) -> dict[str, Any]:
    """Train the recipe with the budget that data and memory give, or go on with a run that was interrupted.

    Args:
        resume: the run in the folder was begun with the same inputs.

    Raises:
        SystemExit: a signal ended it; the code is 128 + its number.
    """
    folder = work.folder.run
    resume = resume and folder.last.is_file() and folder.description.is_file()
    if not resume and folder.root.exists():
        shutil.rmtree(folder.root)
    result = fit(_resumed(work) if resume else _begun(work), resume)
    if not result.finished:
        raise SystemExit(result.exit_code)
    info = read_description(folder.root).info
    return {"head": hash_file(folder.best), "steps": info.steps, "global_batch": info.global_batch}


def _paths(work: Work) -> dict[str, Any]:
    """Options that may change when a run goes on."""
    return {
        "stage1_checkpoint": str(work.stage1_path),
        "output_dir": str(work.folder.root),
        "log_name": work.folder.run.root.name,
        "data": work.request.data,
        "cache_dir": str(work.cache_dir),
        "device": work.request.device,
    }


def _begun(work: Work) -> TrainConfig:
    request = work.request
    budget = choose_budget(
        len(work.dataset.split("train").ids),
        work.recorded("features", "bytes_per_pair") or 0,
        _training_memory(request.device),
        request.batch_size,
        request.epochs,
        request.steps,
    )
    for reason in budget.reasons:
        work.say(f"  {reason}")
    stored = request.features
    return TrainConfig.with_recipe(
        request.recipe,
        **_paths(work),
        **budget.options(),
        seed=request.seed,
        feature_dtype=stored.dtype,
        feature_pca=stored.pca,
        feature_pool=stored.pool,
        on_bad_item=request.bad_items.action,
        bad_items_limit=request.bad_items.limit,
    )


def _resumed(work: Work) -> TrainConfig:
    options = read_description(work.folder.run.root).options
    return dataclasses.replace(TrainConfig.from_dict(dict(options)), **_paths(work))


def _training_memory(device: str) -> int | None:
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return available_memory()


def trained(work: Work) -> bool:
    """Return whether the best head is the one that training left."""
    best = work.folder.run.best
    return best.is_file() and hash_file(best) == work.recorded("train", "head")


def measure(work: Work) -> dict[str, Any]:
    """Score the best head on validation and test, and train and score the baselines; finished ones are kept."""
    folder = work.folder.run
    has_test = bool(work.dataset.splits["test"].ids) if "test" in work.dataset.splits else False
    overlapping = read_description(folder.root).options["num_overlapping_tokens"]
    splits = ("validation", "test") if has_test else ("validation",)
    data = {"data": work.dataset.public_name, **work.dataset.told()}
    record: dict[str, Any] = {"kind": "align-evaluation", **data, "splits": {}}
    for split in splits:
        scores = evaluate(Evaluation(folder.root, split=split, **_present(work)), work.say)
        record["splits"][split] = {
            "ids": len(work.dataset.split(split).ids),
            "overlapping_tokens": overlapping,
            "recall": scores["recall"],
            "chance": scores["chance"],
            "baselines": {},
        }
    for projection in PROJECTIONS if has_test else ():
        output = folder.baseline_results(projection)
        if not output.is_file():
            _train_baseline(work, projection)
        name = f"mean-pool + {projection}"
        record["splits"]["test"]["baselines"][name] = read_object(output)["recall"]
        record["splits"]["validation"]["baselines"][name] = _best_validation(folder.baseline(projection).metrics)
    if not has_test:
        work.say("warning: the data have no test split, so the baselines are not trained")
    write_json(work.folder.evaluation, record)
    return {"evaluation": hash_file(work.folder.evaluation)}


def measured(work: Work) -> bool:
    """Return whether the evaluation is the one that was written."""
    path = work.folder.evaluation
    return path.is_file() and hash_file(path) == work.recorded("evaluate", "evaluation")


def _present(work: Work) -> dict[str, Any]:
    """Places where encoders, data and caches are now."""
    return {"stage1_checkpoint": work.stage1_path, "data": work.request.data, "cache_dir": str(work.cache_dir)}


def _train_baseline(work: Work, projection: str) -> None:
    folder = work.folder.run
    place = folder.baseline(projection)
    if place.root.exists():  # begun, and interrupted
        shutil.rmtree(place.root)
    work.say(f"training mean-pool + {projection} on the same features")
    measure_baseline(folder.root, projection, work.stage1_path, str(work.cache_dir), work.request.device)


def _best_validation(metrics: Path) -> Any:
    """Return the recall of the best validation that a run recorded."""
    records = [record.values for record in read_records(metrics).records if record.values["kind"] == "validation"]
    return max(records, key=lambda values: float(values["score"]))["recall"]
