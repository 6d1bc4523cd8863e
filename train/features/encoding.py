"""Frozen encoders, the data set that they encode, and one modality of one split between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from fluxtalk.datasets import load_dataset
from fluxtalk.datasets.bad_items import one_line
from fluxtalk.datasets.data_paths import first_existing
from fluxtalk.datasets.pairs import Items, PairDataset, Split
from fluxtalk.errors import DataError, InputError, UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1
from fluxtalk.model.encoders import Features, FrozenEncoder, describe_error, to_tensors
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.preprocess import Preprocessor
from fluxtalk.train.distributed import wait_for_first


@dataclass(frozen=True)
class Encoding:
    """Raw items of a modality, and everything that turns them into what the head reads."""

    split: Split
    modality: str
    preprocess: Preprocessor
    encoder: FrozenEncoder
    reduction: FeatureReduction
    device: torch.device
    source: str
    """Specification that the encoder was built from, for errors."""

    @classmethod
    def of(
        cls,
        stage1: Stage1,
        split: Split,
        modality: str,
        device: torch.device,
        reduction: FeatureReduction | None = None,
    ) -> Encoding:
        """Build a modality's encoder for the items of a split.

        Raises:
            DataError: the split has nothing of this modality.
        """
        if modality not in split.items:
            raise DataError(
                f"The {split.name} split has {', '.join(split.items)} and no {modality}, which stage 1 encodes; "
                "give other --data."
            )
        part = stage1.modalities[modality]
        reduction = reduction or FeatureReduction(ReductionConfig(part.spec.dim))
        encoder = part.build().to(device)
        return cls(split, modality, part.preprocess, encoder, reduction.to(device), device, part.spec.source)

    @property
    def items(self) -> Items:
        """The raw items."""
        return self.split.items[self.modality]

    def prepare(self, row: int) -> NDArray[Any]:
        """Decode one item.

        Raises:
            DataError: it cannot be used; the sentence names the item.
        """
        try:
            return self.decode(row)
        except InputError as error:
            raise DataError(f"{self.named(row)} cannot be encoded: {error}") from None

    def decode(self, row: int) -> NDArray[Any]:
        """Decode one item.

        Raises:
            InputError: it cannot be used.
            DataError: its data set was changed.
        """
        return self.preprocess.prepare(self.items.values[row])

    def try_decoding(self, row: int) -> NDArray[Any] | str:
        """Decode one item; what is wrong with one that cannot be used is returned in its place."""
        try:
            return self.decode(row)
        except InputError as error:
            return one_line(error)

    def encode(self, prepared: Sequence[NDArray[Any]], rows: Sequence[int]) -> Features:
        """Reduced features of decoded items, float32, without gradients.

        Args:
            rows: rows of the items.

        Raises:
            DataError: the encoder fails; the sentence names the item and what the encoder raised.
        """
        try:
            return self._encode(prepared)
        except Exception as error:  # a user's code may raise anything
            raise DataError(
                f"{self._culprit(prepared, rows)} cannot be encoded: the encoder {self.source} fails: "
                f"{describe_error(error)}; correct it or leave the item out; --debug shows where."
            ) from error

    def encode_usable(
        self, decoded: Sequence[tuple[int, NDArray[Any]]], bad: dict[int, str]
    ) -> list[tuple[list[int], Features]]:
        """Encode items, if the encoder fails one by one.

        Args:
            decoded: row and item of each.
            bad: receives the row of each item on which the encoder fails, and the reason.

        Returns:
            rows and their features, as `encode` gives them.

        Raises:
            DataError: the encoder fails on every item.
        """
        rows = [row for row, _ in decoded]
        try:
            return [(rows, self.encode([item for _, item in decoded], rows))] if rows else []
        except DataError:
            found, failed = [], {}
            # A GPU that failed once fails on everything after: then all fail, as they do with a broken encoder.
            for row, item in decoded:
                try:
                    found.append(([row], self.encode([item], [row])))
                except DataError as error:
                    raised = error.__cause__ if isinstance(error.__cause__, Exception) else error
                    failed[row] = f"the encoder {self.source} fails: {describe_error(raised)}"
            if not found or not failed:
                raise
            bad.update(failed)
            return found

    def _culprit(self, prepared: Sequence[NDArray[Any]], rows: Sequence[int]) -> str:
        """Name the first item on which the encoder fails alone; if there is none, the batch."""
        # A GPU that failed once fails on everything after.
        for array, row in zip(prepared, rows, strict=True) if self.device.type == "cpu" else ():
            try:
                self._encode([array])
            except Exception:
                return self.named(row)
        return f"Some of {len(rows)} items, the first of which is: {self.named(rows[0])},"

    def named(self, row: int) -> str:
        id_ = self.split.ids[int(self.items.groups[row])]
        return f"Item {row} of {self.modality} in the {self.split.name} split (id {id_!r})"

    def _encode(self, prepared: Sequence[NDArray[Any]]) -> Features:
        with torch.no_grad():
            features, mask = self.encoder(*to_tensors(self.preprocess.collate(prepared), self.device))
            reduced: Features = self.reduction(Features(features.float(), mask))
        return reduced


def read_encoders_and_data(
    stage1_checkpoint: Path, data: str | None, cache_dir: Path, group: ProcessGroup, tolerated: float = 0.0
) -> tuple[Stage1, PairDataset]:
    """Read frozen encoders and a data set that has items for all of them, the first process before the others.

    Args:
        data: data set; None takes the one that stage 1 names.
        tolerated: see `load_dataset`.

    Raises:
        CheckpointError: stage 1 cannot be used.
        UsageError: no data set is named, or it lacks a modality that stage 1 encodes.
        DataError: the data set cannot be used.
    """
    stage1 = load_stage1(stage1_checkpoint)
    name = data or stage1.data
    if name is None:
        raise UsageError(f"{stage1_checkpoint} names no data set; say which with --data.")
    if data is None and first_existing([name]) is None:
        raise DataError(
            f"The data set {name}, which is `data` of {stage1_checkpoint}, does not exist; "
            "put it there, or say with --data where it is."
        )
    with wait_for_first(group):
        dataset = load_dataset(name, cache_dir, stage1.kinds, tolerated)
    missing = sorted(set(stage1.modalities) - set(dataset.modalities))
    if missing:
        raise UsageError(
            f"The stage 1 checkpoint encodes {', '.join(stage1.modalities)}, "
            f"but {name} has {', '.join(dataset.modalities)}: nothing for {', '.join(missing)}; "
            "rename the columns or choose other --data."
        )
    return stage1, dataset
