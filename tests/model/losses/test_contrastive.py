"""Contrastive losses: blocks equal the plain form, absent samples, several vectors per item, sigmoid."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluxtalk.model.head.token_head import RegisterOutputs
from fluxtalk.model.losses.contrastive import MAX_SCORES, Candidates, RowLoss, contrast, info_nce, sigmoid_loss
from fluxtalk.model.losses.register_loss import RegisterTokenLoss
from fluxtalk.model.losses.similarity import Vectors, aggregate, similarity, single
from fluxtalk.tokens import concatenate, maxsim, pool


def _tokens(rows: int, seed: int, dtype: torch.dtype = torch.float64, tokens: int = 3, dim: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, dim, generator=generator, dtype=dtype).requires_grad_()


def _everyone(rows: int) -> Tensor:
    return torch.ones(rows, dtype=torch.bool)


@pytest.mark.parametrize("aggregation", ["mean", "concat", "maxsim"])
@pytest.mark.parametrize("row_loss", [info_nce, sigmoid_loss])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_blocks_equal_the_plain_form(aggregation: str, row_loss: RowLoss, dtype: torch.dtype, tolerance: float) -> None:
    """Losses and gradients, of anchors, candidates, scale and bias; block sizes that divide nothing."""
    ids = torch.arange(23) // 2
    keep = torch.arange(3) < torch.randint(1, 4, (23, 1), generator=torch.Generator().manual_seed(5))
    results = []
    for max_scores in (10**9, 300, 1):
        a, c = _tokens(23, 1, dtype), _tokens(23, 2, dtype)
        scale, bias = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (9.0, -2.0))
        anchors, others = (aggregate(aggregation, x, keep, 3) for x in (a, c))
        candidates = Candidates(others, ids.flip(0), torch.arange(23) != 4)
        rows = contrast(row_loss, anchors, ids, candidates, scale, bias, max_scores)
        rows.square().sum().backward()
        gradients = [x.grad for x in (a, c, scale, bias)]
        assert all(g is not None for g in gradients)
        results.append((rows.detach(), torch.cat([g.reshape(-1) for g in gradients if g is not None])))
    for rows, gradient in results[1:]:
        assert (rows - results[0][0]).norm() <= tolerance * results[0][0].norm()
        assert (gradient - results[0][1]).norm() <= tolerance * results[0][1].norm()
    assert results[0][1].norm() > 1


def _growth_mb(rows: int, dim: int, max_scores: int = MAX_SCORES) -> float:
    """Measure the growth of a fresh process's peak resident memory in the loss and its gradient."""
    program = f"""
import functools
import torch
from fluxtalk.model.losses import register_loss
from fluxtalk.model.head.token_head import RegisterOutputs

contrast = register_loss.contrast

def peak_mb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

def backward(rows, max_scores):
    register_loss.MAX_SCORES = max_scores
    register_loss.contrast = functools.partial(contrast, max_scores=max_scores)
    tokens = {{m: torch.randn(rows, 1, {dim}, requires_grad=True) for m in "ab"}}
    keep = {{m: torch.ones(rows, 1, dtype=torch.bool) for m in "ab"}}
    before = peak_mb()
    register_loss.RegisterTokenLoss()(RegisterOutputs(tokens, keep, 1), torch.arange(rows)).total.backward()
    return peak_mb() - before

backward(64, 1024)  # what is loaded for the first blocks
print(backward({rows}, {max_scores}))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_memory_grows_linearly_with_the_batch() -> None:
    """At 2,048 rows the plain form holds 158 MB; the loss, in blocks of 1 MB, less than half of it."""
    assert 10 < _growth_mb(2048, 32, 2**18) < 79


@pytest.mark.slow
def test_the_loss_adds_less_than_1_gb_at_batch_32768() -> None:
    assert 100 < _growth_mb(32768, 256) < 1000


def test_sigmoid_is_binary_cross_entropy() -> None:
    """Against PyTorch's, pair by pair; an invalid candidate is no pair."""
    ids = torch.tensor([0, 0, 1, 2])
    valid = torch.tensor([True, True, False, True])
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    positive = ids[:, None] == ids[None]
    expected = F.binary_cross_entropy_with_logits(logits, positive.double(), reduction="none")[:, valid].sum(dim=1)
    torch.testing.assert_close(sigmoid_loss(logits, positive, valid), expected)


def test_the_sigmoid_starts_at_the_odds_of_a_pair_and_divides_by_the_batch() -> None:
    outputs = RegisterOutputs(
        {m: _tokens(6, s, torch.float32) for s, m in enumerate("ab")},
        {m: torch.ones(6, 3, dtype=torch.bool) for m in "ab"},
        3,
    )
    loss = RegisterTokenLoss(0.0, contrastive="sigmoid", batch_size=6)
    assert loss.bias is not None
    assert loss.bias.item() == pytest.approx(-math.log(5))
    a, b = (outputs.pooled(m) for m in "ab")
    logits = loss.log_scale.exp() * a @ b.T + loss.bias
    expected = F.binary_cross_entropy_with_logits(logits, torch.eye(6), reduction="sum") / 6
    terms = loss(outputs, torch.arange(6))
    torch.testing.assert_close(terms.contrastive, expected)
    terms.total.backward()
    assert loss.bias.grad is not None
    assert loss.bias.grad != 0
    assert RegisterTokenLoss().bias is None


@pytest.mark.parametrize("k", [1, 2, 3])
def test_similarities_are_those_of_serving(k: int) -> None:
    """The numpy twin, which the runtime uses, at the same k on both sides."""
    a, b = _tokens(5, 1, torch.float32), _tokens(7, 2, torch.float32)
    one, other = a.detach().numpy(), b.detach().numpy()
    keeps = [(torch.arange(3) < k).expand(len(x), 3) for x in (a, b)]
    expected = {
        "mean": pool(one, 2, k) @ pool(other, 2, k).T,
        "concat": concatenate(one, 2, k) @ concatenate(other, 2, k).T,
        "maxsim": maxsim(one[:, : min(k, 2)], other[:, : min(k, 2)]),
    }
    for aggregation, scores in expected.items():
        vectors = [aggregate(aggregation, x, keep, 2) for x, keep in zip((a, b), keeps, strict=True)]
        np.testing.assert_allclose(similarity(vectors[0], vectors[1]).detach().numpy(), scores, rtol=0, atol=1e-6)


def test_late_interaction_leaves_dropped_tokens_out() -> None:
    """Unequal numbers of tokens: a dropped one is not a match, and does not count in the mean."""
    x = torch.eye(4)
    anchors = Vectors(x[[0, 1]][None], torch.tensor([[True, False]]))
    candidates = Vectors(torch.stack([x[[1, 0]], x[[0, 2]]]), torch.tensor([[True, False], [True, True]]))
    assert similarity(anchors, candidates).tolist() == [[0.0, 1.0]]


def _subset(outputs: RegisterOutputs, modalities: tuple[str, str], rows: Tensor) -> RegisterOutputs:
    return RegisterOutputs(
        {m: outputs.tokens[m][rows] for m in modalities}, {m: outputs.keep[m][rows] for m in modalities}, 2
    )


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_samples_without_a_modality_take_part_in_the_pairs_they_have(kind: str) -> None:
    """Each pair of modalities by itself, on the rows that have both, gives the same as all at once."""
    names = ("image", "text", "audio")
    present = {
        "image": torch.tensor([True, True, False, True, True, False]),
        "text": torch.tensor([True, True, True, False, True, True]),
        "audio": torch.tensor([False, True, True, True, True, False]),
    }
    tokens = {m: _tokens(6, s) for s, m in enumerate(names)}
    keep = {m: torch.ones(6, 3, dtype=torch.bool) for m in names}
    loss = RegisterTokenLoss(0.0, contrastive=kind, batch_size=6).double()
    whole = loss(RegisterOutputs(tokens, keep, 2, present), torch.arange(6)).contrastive
    parts = []
    for a, b in itertools.permutations(names, 2) if kind == "infonce" else itertools.combinations(names, 2):
        if kind == "infonce":
            # Rows that have only one of both are candidates, never anchors.
            one, other = (_pooled(tokens[m]) for m in (a, b))
            logits = loss.log_scale.exp() * one @ other[present[b]].T
            columns = torch.arange(6)[present[b]]
            both = present[a] & present[b]
            rows = [F.cross_entropy(logits[i][None], (columns == i).nonzero()[0]) for i in range(6) if both[i]]
            parts.append(torch.stack(rows).mean())
        else:
            one, other = (_pooled(tokens[m])[present[m]] for m in (a, b))
            labels = torch.arange(6)[present[a], None] == torch.arange(6)[None, present[b]]
            assert loss.bias is not None
            logits = loss.log_scale.exp() * one @ other.T + loss.bias
            parts.append(F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="sum") / len(one))
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    whole.backward()
    for modality, values in tokens.items():
        assert values.grad is not None
        assert (values.grad[~present[modality]] == 0).all()
        assert (values.grad[present[modality], :2] != 0).any()


def _pooled(tokens: Tensor) -> Tensor:
    return F.normalize(tokens[:, :2].mean(dim=1), dim=-1)


def test_a_pair_of_modalities_that_no_sample_has_does_not_count() -> None:
    names = ("image", "text", "audio")
    tokens = {m: _tokens(4, s) for s, m in enumerate(names)}
    keep = {m: torch.ones(4, 3, dtype=torch.bool) for m in names}
    present = {"image": _everyone(4), "text": _everyone(4), "audio": ~_everyone(4)}
    loss = RegisterTokenLoss(0.0).double()
    three = loss(RegisterOutputs(tokens, keep, 2, present), torch.arange(4)).contrastive
    two = loss(_subset(RegisterOutputs(tokens, keep, 2), ("image", "text"), torch.arange(4)), torch.arange(4))
    torch.testing.assert_close(three, two.contrastive)


def test_the_loss_at_several_k_is_the_mean_of_the_losses_at_each() -> None:
    tokens = {m: _tokens(5, s) for s, m in enumerate("ab")}
    keep = {m: torch.ones(5, 3, dtype=torch.bool) for m in "ab"}
    loss = RegisterTokenLoss(0.0).double()
    counts = (1, 3, 2, 1)
    several = loss(RegisterOutputs(tokens, keep, 2), torch.arange(5), prefix_counts=counts).contrastive
    each = []
    for count in counts:
        short = {m: (torch.arange(3) < count).expand(5, 3) for m in "ab"}
        each.append(loss(RegisterOutputs(tokens, short, 2), torch.arange(5)).contrastive)
    torch.testing.assert_close(several, torch.stack(each).mean())
    assert each[0] != each[1]


def test_single_wraps_unit_vectors() -> None:
    unit = F.normalize(torch.randn(3, 4), dim=1)
    torch.testing.assert_close(similarity(single(unit), single(unit)), unit @ unit.T)
