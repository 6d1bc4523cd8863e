"""Nested dropout: random prefixes of the register tokens, in training only.

Rippel, Gelbart and Adams 2014, "Learning Ordered Representations with Nested Dropout".
"""

from __future__ import annotations

import hashlib
import warnings

import torch
from torch import Tensor

from fluxtalk.config import SCHEDULES
from fluxtalk.errors import UsageError


def drop_probabilities(num_tokens: int, rate: float, schedule: str = "linear") -> Tensor:
    """Compute the probability that each token is dropped: float64 (num_tokens,), ascending, 0 for the first.

    ``linear`` rises evenly from 0 at the first token to ``rate`` at the last. The others spread the
    prefix length of samples that lose a token, which happens with probability ``rate``:
    ``uniform`` takes each shorter length equally often, ``pow2`` the powers of two, and ``geometric``
    halves the probability from each length to the next.

    Raises:
        UsageError: ``rate`` is not in [0, 1), or the schedule is unknown.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"The nested dropout rate is in [0, 1); got {rate}.")
    if schedule not in SCHEDULES:
        raise UsageError(f"The nested dropout schedule is one of {', '.join(SCHEDULES)}; got {schedule!r}.")
    if num_tokens == 1:
        return torch.zeros(1, dtype=torch.float64)
    if schedule == "linear":
        return torch.arange(num_tokens, dtype=torch.float64) * (rate / (num_tokens - 1))
    lengths = torch.arange(1, num_tokens, dtype=torch.float64)
    if schedule == "uniform":
        weight = torch.ones_like(lengths)
    elif schedule == "pow2":
        weight = ((lengths.long() & (lengths.long() - 1)) == 0).double()
    else:
        weight = 0.5 ** (lengths - 1)
    # Token i + 1 is dropped exactly if the prefix is i long or shorter.
    return torch.cat([torch.zeros(1, dtype=torch.float64), rate * weight.cumsum(0) / weight.sum()])


class NestedDropout:
    """Draws prefix lengths with the marginals of `drop_probabilities`.

    One uniform number per sample decides all its tokens: token i stays where ``u >= p_i``. Since p rises,
    what stays is always a prefix, which independent draws per token would not be; and serving always uses
    prefixes. The numbers are stratified over the batch (one in each of B equal intervals, in random
    order), which keeps every marginal and lowers the variance.
    """

    def __init__(self, num_tokens: int, rate: float, schedule: str = "linear", seed: int = 0) -> None:
        self.probabilities = drop_probabilities(num_tokens, rate, schedule)
        self.num_tokens = num_tokens
        self.rate = rate
        self.seed = seed
        if num_tokens > 1 and rate > (num_tokens - 1) / num_tokens:
            warnings.warn(
                f"With a nested dropout rate of {rate}, all {num_tokens} tokens together are trained less often than "
                f"each shorter prefix; rates up to {(num_tokens - 1) / num_tokens:.2f} avoid that.",
                stacklevel=2,
            )

    def sample(self, batch: int, step: int, modality: str) -> Tensor:
        """Draw prefix lengths, int64 (batch,), each in ``1..num_tokens``.

        The draw depends on (seed, step, modality) and the size of the *global* batch alone, so that it is
        the same however many processes share the batch: each takes its rows.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step, modality))
        strata = torch.randperm(batch, generator=generator).double()
        u = (strata + torch.rand(batch, dtype=torch.float64, generator=generator)) / batch
        return self._lengths(u)

    def sample_for_batch(self, step: int) -> int:
        """Draw one prefix length for all samples and modalities of a step, with the same marginals over steps."""
        return int(self._uniform(step, 1)[0])

    def sample_several(self, step: int) -> tuple[int, ...]:
        """Draw the prefix lengths at which one step computes its loss: 1, all tokens, and two random ones."""
        return (1, self.num_tokens, *self._uniform(step, 2).tolist())

    def _uniform(self, step: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step, "batch"))
        return self._lengths(torch.rand(count, dtype=torch.float64, generator=generator))

    def _lengths(self, u: Tensor) -> Tensor:
        return (u[:, None] >= self.probabilities).sum(dim=1)


def derive_seed(*parts: object) -> int:
    """Derive a seed for `torch.Generator` from all parts, the same in every process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
