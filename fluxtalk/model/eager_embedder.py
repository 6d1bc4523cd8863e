"""Frozen encoder, feature reduction and register head of one modality as one module, which is exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxtalk.arrays import Arrays
from fluxtalk.errors import UsageError
from fluxtalk.model.encoders import Features, FrozenEncoder, to_tensors
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import Preprocessor
from fluxtalk.tokens import check_token_count


class Embeddings(NamedTuple):
    """Tokens and pooled embeddings, (batch, k, dim) both."""

    tokens: Tensor
    embeddings: Tensor
    """Rows of length 1, of which the summary is made; see `TokenHead.embeddings`."""


class EagerEmbedder(nn.Module):
    """Preprocessed input to register tokens and pooled embeddings.

    Args:
        encoder: the frozen encoder.
        head: shared with the other modalities; put into evaluation mode, without nested dropout.
        modality: one of the head's modalities.
        reduction: reduction of the features in the head's training; None is none.

    Raises:
        UsageError: the head reads features of another dimension.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        head: RegisterTokenModule,
        modality: str,
        reduction: FeatureReduction | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.reduction = reduction or FeatureReduction(ReductionConfig(encoder.dim))
        self.head = head
        given, read = (encoder.dim, self.reduction.dim), (self.reduction.config.dim, head.config.dims[modality])
        if given != read:
            raise UsageError(
                f"The {modality} features have dimension {given[0]}, reduced to {given[1]}; this head was trained on "
                f"{read[0]}, reduced to {read[1]}: give the encoder and the reduction of its training."
            )
        self.modality = modality
        self.eval()

    def forward(self, *inputs: Tensor) -> Embeddings:
        """Embed a batch.

        Args:
            inputs: the preprocessing's arrays in order, then ``token_index`` (int64, (k,)): ``arange(k)``.
        """
        *arrays, token_index = inputs
        return self.read(self.encoder(*arrays), token_index)

    def read(self, features: Features, token_index: Tensor) -> Embeddings:
        """Do the second half of `forward`: reduction and head."""
        values, mask = self.reduction(features)
        tokens = self.head.tokens(self.modality, values, mask, token_index)
        return Embeddings(tokens, self.head.embeddings(tokens, token_index))

    def read_with_attention(self, features: Features, token_index: Tensor) -> tuple[Embeddings, Tensor]:
        """Do `read`, and return each register's attention too: (batch, k, length) over the reduced features."""
        values, mask = self.reduction(features)
        tokens, attention = self.head.tokens_and_attention(self.modality, values, mask, token_index)
        return Embeddings(tokens, self.head.embeddings(tokens, token_index)), attention

    def embed(
        self, preprocess: Preprocessor, items: Sequence[Any], k: int | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Embed raw items eagerly, in one batch: tokens and embeddings as arrays (items, k, dim).

        Raises:
            TokenCountError: ``k`` is not in ``1..num_register_tokens``.
            InputError: an item cannot be preprocessed.
        """
        count = check_token_count(k, self.head.config.num_register_tokens, "this head")
        batch = preprocess.collate([preprocess.prepare(item) for item in items])
        return self.embed_arrays(batch, count)

    def embed_arrays(self, batch: Arrays, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Embed a preprocessed batch eagerly: tokens and embeddings as arrays (items, k, dim)."""
        device = self.head.registers.device
        with torch.inference_mode():
            result = self(*to_tensors(batch, device), torch.from_numpy(np.arange(k)).to(device))
        return result.tokens.cpu().numpy(), result.embeddings.cpu().numpy()
