"""Finding the bad items of a data set once everything else is encoded, and what the policy makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from fluxtalk.artifacts.files import hash_json
from fluxtalk.console import Log, progress
from fluxtalk.datasets import PairDataset
from fluxtalk.datasets.bad_items import ROW, BadItem, BadItemPolicy, read_report, shown_item, write_report
from fluxtalk.datasets.left_out import leave_out
from fluxtalk.errors import DataError
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.head.reduction import FeatureReduction
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.train.features.build import PREPARING_THREADS
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.sources import whole_cache

STRICT = BadItemPolicy()
"""The default: any bad item is refused."""


def admit(
    stage1: Stage1,
    dataset: PairDataset,
    splits: Sequence[str],
    encode: str,
    cache_dir: Path,
    device: torch.device,
    options: CacheOptions,
    reductions: Mapping[str, FeatureReduction],
    group: ProcessGroup,
    say: Log,
    policy: BadItemPolicy,
) -> PairDataset:
    """Encode every item of some splits (with ``encode`` online: decode it), and leave the bad ones out if allowed.

    Args:
        dataset: a data set as it was read.
        say: receives a line about what is left out.

    Raises:
        DataError: the policy refuses the bad items, which the sentence lists; all are in `bad_items_report`.
        ArtifactError: a cache is damaged or belongs to something else.
    """
    report = bad_items_report(stage1, dataset, cache_dir)
    options = replace(options, verify=False)  # whoever reads the features verifies them
    if encode == "cache":
        bad = [*dataset.bad_rows]
        for split in splits:
            for m in stage1.modalities:
                reduction = reductions.get(m)
                cache = whole_cache(stage1, dataset, split, m, cache_dir, device, options, reduction, group, say)
                bad += _named(dataset, split, m, cache.manifest.bad)
        if group.rank == 0 and bad:
            write_report(report, dataset.name, dataset.content_hash, bad)
    else:
        if group.rank == 0 and not report.is_file():
            found = [*dataset.bad_rows, *_undecodable(stage1, dataset, splits, device)]
            write_report(report, dataset.name, dataset.content_hash, found)
        group.all_reduce_sum(torch.zeros(1))  # the first process has left the file
        bad = list(read_report(report)[1])
    totals = {m: sum(len(dataset.splits[split].items[m]) for split in splits) for m in stage1.modalities}
    if dataset.bad_rows:
        totals[ROW] = len(dataset.bad_rows) + sum(len(dataset.splits[split].ids) for split in splits)
    refusal = policy.refusal(bad, totals, f"The data set {dataset.name}", report)
    if refusal is not None:
        raise DataError(refusal)
    admitted = leave_out(dataset, bad)
    if admitted.left_out is not None:
        say(f"warning: {admitted.left_out.sentence()}; {report} lists them")
    return admitted


def splits_with_items(dataset: PairDataset) -> list[str]:
    """List the splits that are not empty."""
    return [name for name, split in dataset.splits.items() if split.ids]


def bad_items_report(stage1: Stage1, dataset: PairDataset, cache_dir: Path) -> Path:
    """Return the file that lists the bad items of a data set, which depend on how items are decoded and encoded."""
    key = hash_json([dataset.whole.content_hash, stage1.content_hash()])
    return cache_dir / "bad_items" / f"{key[:16]}.jsonl"


def _named(dataset: PairDataset, split: str, modality: str, bad: Mapping[int, str]) -> Iterator[BadItem]:
    part = dataset.splits[split]
    items = part.items[modality]
    for row, why in bad.items():
        id_ = part.ids[int(items.groups[row])]
        place = f"{modality} of id {id_!r} in {split}"
        yield BadItem(_shown(items.values, row, place), why, modality, split, row, id_)


def _shown(values: Sequence[object], row: int, otherwise: str) -> str:
    try:
        return shown_item(values[row], otherwise)
    except Exception:  # the value itself may be what cannot be read
        return otherwise


def _undecodable(
    stage1: Stage1, dataset: PairDataset, splits: Sequence[str], device: torch.device
) -> Iterator[BadItem]:
    """Yield items that cannot be decoded: what runs the encoders in every step has to know before the first."""
    with ThreadPoolExecutor(PREPARING_THREADS) as pool:
        for split in splits:
            for m in stage1.modalities:
                encoding = Encoding.of(stage1, dataset.split(split), m, device)
                rows = range(len(encoding.items))
                tried = pool.map(lambda row, of=encoding: _problem(of, row), rows)
                found = zip(rows, progress(tried, f"checking {split} {m}", len(rows), "item"), strict=True)
                yield from _named(dataset, split, m, {row: why for row, why in found if why})


def _problem(encoding: Encoding, row: int) -> str:
    decoded = encoding.try_decoding(row)
    return decoded if isinstance(decoded, str) else ""
