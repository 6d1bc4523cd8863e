"""One modality of one split on its way through its frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import DataError, InputError
from fluxtalk.model.encoders import Features, FrozenEncoder, to_tensors
from fluxtalk.model.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.stage1 import Stage1
from fluxtalk.preprocess import Preprocessor


@dataclass(frozen=True)
class Encoding:
    """Raw items of a modality, and everything that turns them into what the head reads."""

    split: Split
    modality: str
    preprocess: Preprocessor
    encoder: FrozenEncoder
    reduction: FeatureReduction
    device: torch.device

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
        return cls(split, modality, part.preprocess, part.build().to(device), reduction.to(device), device)

    @property
    def items(self) -> Items:
        """The raw items."""
        return self.split.items[self.modality]

    def prepare(self, row: int) -> NDArray[Any]:
        """Decode one item.

        Raises:
            DataError: it cannot be used; the sentence names it.
        """
        try:
            return self.preprocess.prepare(self.items.values[row])
        except InputError as error:
            id_ = self.split.ids[int(self.items.groups[row])]
            raise DataError(
                f"Item {row} of {self.modality} in the {self.split.name} split (id {id_!r}) cannot be encoded: {error}"
            ) from None

    def encode(self, prepared: Sequence[NDArray[Any]]) -> Features:
        """Reduced features of decoded items, float32, without gradients."""
        with torch.no_grad():
            features, mask = self.encoder(*to_tensors(self.preprocess.collate(prepared), self.device))
            reduced: Features = self.reduction(Features(features.float(), mask))
        return reduced
