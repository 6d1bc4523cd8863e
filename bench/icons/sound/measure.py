"""Three real encoders aligned on tables of spoken names: from weights to a verified bundle and a table of recall."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.encoders.real_sources import describe, real_specification
from bench.encoders.torchvision_operators import declare_torchvision_operators
from bench.icons.sound.tables import HELD_OUT, KNOWN, KNOWN_TABLE, UNSEEN_TABLE, SoundPlan, write_sound_tables
from bench.icons.tables import Row
from bench.machine import processor
from bench.markdown import markdown_table
from fluxtalk.align.export_and_verify import largest_differences
from fluxtalk.align.plan import align
from fluxtalk.align.request import AlignRequest
from fluxtalk.align.work import Work
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.model.checkpoints.stage1 import save_stage1
from fluxtalk.train.results.evaluate import Evaluation, evaluate
from fluxtalk.train.stage1.create import stage1_from_specification

ENCODERS = {"image": "efficientnet-lite0", "text": "minilm", "audio": "resemblyzer"}
_COLUMNS = "?image=image&text=text&audio=audio&id=id&split=split"
_PACKAGES = ("torch", "timm", "sentence-transformers", "onnxruntime", "numpy")


@dataclasses.dataclass(frozen=True)
class Training:
    """Length of the training; None leaves a choice to `fluxtalk align`."""

    steps: int | None = 300
    batch_size: int | None = 128
    seed: int = 0


def measure(root: Path, output: Path, plan: SoundPlan, training: Training, say: Callable[[str], None]) -> Any:
    """Write tables, pack, train, measure, export and verify; what is up to date is not done again.

    Args:
        root: data set with ``speech.csv``.
        output: gets encoders, the run and the bundle.

    Returns:
        The results, ready for JSON.

    Raises:
        BackendError: espeak-ng is not installed.
        DataError: there is no ``speech.csv`` in ``root``.
        UsageError: a package that carries weights is not installed.
    """
    declare_torchvision_operators()
    tables = write_sound_tables(root, plan)
    checkpoint = output / "stage1.pth"
    if not checkpoint.is_file():
        _pack(output, checkpoint)
    request = AlignRequest(
        f"{root / KNOWN_TABLE}{_COLUMNS}",
        output / "aligned",
        stage1_checkpoint=checkpoint,
        steps=training.steps,
        batch_size=training.batch_size,
        seed=training.seed,
        device="cpu",
        cache_dir=str(output / "cache"),
    )
    work = Work(request, say)
    align(work)
    run = work.folder.run.root
    test = json.loads(work.folder.evaluation.read_text())["splits"]["test"]
    unseen = evaluate(Evaluation(run, f"{root / UNSEEN_TABLE}{_COLUMNS}", cache_dir=request.cache_dir), say)
    return {
        "encoders": {modality: describe(name) for modality, name in ENCODERS.items()},
        "plan": dataclasses.asdict(plan),
        "training": {**dataclasses.asdict(training), "recipe": request.recipe},
        "voices": {"known": KNOWN, "unseen": HELD_OUT},
        "rows": _counts(tables[KNOWN_TABLE]),
        "test": test,
        "unseen_voices": {"recall": unseen["recall"], "chance": unseen["chance"]},
        "parity": largest_differences(json.loads(work.folder.verification.read_text())),
        "seconds": {name: record.seconds for name, record in work.stages.items()},
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "date": time.strftime("%Y-%m-%d"),
            "revision": git_revision(),
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        },
    }


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results as JSON."""
    write_json(path, results)


def sound_table(results: Mapping[str, Any], cutoff: str = "10") -> str:
    """Write recall at a cut-off, in percent, as a table in Markdown: a row per direction."""
    test, unseen = results["test"], results["unseen_voices"]["recall"]
    most = str(test["overlapping_tokens"])
    baselines = test["baselines"]
    header = ["direction", "k = 1", f"k = {most}", f"unseen voices, k = {most}", *baselines, "chance"]
    rows = []
    for direction, by_k in test["recall"].items():
        heard = "audio" in direction
        rows.append(
            [
                direction.replace("->", " → "),
                _percent(by_k["1"][cutoff]),
                _percent(by_k[most][cutoff]),
                _percent(unseen[direction][most][cutoff]) if heard else "-",
                *(_percent(next(iter(recall[direction].values()))[cutoff]) for recall in baselines.values()),
                _percent(test["chance"][direction][cutoff]),
            ]
        )
    return markdown_table(header, rows)


def _pack(output: Path, checkpoint: Path) -> None:
    modalities = {modality: real_specification(name, output / "weights") for modality, name in ENCODERS.items()}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "encoders.json", {"modalities": modalities})
    save_stage1(stage1_from_specification(output / "encoders.json"), checkpoint)


def _counts(rows: list[Row]) -> dict[str, dict[str, int]]:
    """Count rows and things of each split, and the rows that lack each modality."""
    counts: dict[str, dict[str, int]] = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        part = [row for row in rows if row["split"] == split]
        lacking = {f"without_{modality}": sum(not row[modality] for row in part) for modality in ENCODERS}
        counts[split] = {"rows": len(part), "things": len({row["id"] for row in part}), **lacking}
    return counts


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
