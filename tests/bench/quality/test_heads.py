"""The heads that register tokens are compared with: each does what the comparison says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.quality.heads import AttentionPoolHead, ManyVectorsHead, MatryoshkaHead, QueryFormerHead
from fluxtalk.config import HeadConfig
from fluxtalk.errors import UsageError
from fluxtalk.model.head.pooling import l2_normalize, pool_kept
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.losses.register_loss import RegisterTokenLoss

DIMS = {"image": 20, "text": 12}


def config(tokens: int, rate: float = 0.0) -> HeadConfig:
    return HeadConfig(
        DIMS,
        dim=16,
        heads=4,
        num_register_tokens=tokens,
        num_overlapping_tokens=tokens,
        nested_dropout_rate=rate,
    )


def features() -> Tensor:
    return torch.randn(5, 7, DIMS["image"], generator=torch.Generator().manual_seed(1))


def spread(head: TokenHead) -> TokenHead:
    """The head with registers as far apart as after training: at their start they are all but equal."""
    torch.manual_seed(2)
    for name, parameter in head.named_parameters():
        if name in ("queries", "registers"):
            torch.nn.init.normal_(parameter)
    return head.eval()


def tokens(head: TokenHead, count: int, values: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    return head.tokens("image", features() if values is None else values, mask, torch.arange(count))


@pytest.mark.parametrize(
    "head",
    [AttentionPoolHead(config(1)), QueryFormerHead(config(3)), MatryoshkaHead(config(3, 0.5))],
    ids=lambda head: type(head).__name__,
)
def test_padding_and_neighbors_change_nothing(head: TokenHead) -> None:
    head.eval()
    count = head.config.num_register_tokens
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[0, 4:] = False
    read = tokens(head, count, mask=mask)
    alone = tokens(head, count, features()[:1, :4])
    torch.testing.assert_close(read[:1], alone, rtol=1e-5, atol=1e-6)


def test_attention_pool_is_a_weighted_mean_of_projected_features() -> None:
    head = AttentionPoolHead(config(1)).eval()
    values = features()
    normed = F.layer_norm(values, values.shape[-1:])
    attention = head.attention
    query = (head.probe @ attention.query.weight.T + attention.query.bias).reshape(4, 4)
    heads = []
    for index in range(4):
        part = slice(4 * index, 4 * index + 4)
        key = normed @ attention.key["image"].weight[part].T  # type: ignore[union-attr,operator,index]
        value = F.linear(normed, attention.value["image"].weight[part], attention.value["image"].bias[part])  # type: ignore[union-attr,operator,index,arg-type]
        heads.append(((key @ query[index] / 2).softmax(dim=1)[..., None] * value).sum(dim=1))
    expected = head.output(attention.out(torch.cat(heads, dim=1)))
    torch.testing.assert_close(tokens(head, 1)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_attention_pool_has_one_token() -> None:
    with pytest.raises(UsageError, match="1 token; got 3"):
        AttentionPoolHead(config(3))


def test_query_former_has_no_prefix_property_and_registers_have() -> None:
    former = spread(QueryFormerHead(config(3)))
    assert (tokens(former, 3)[:, :1] - tokens(former, 1)).abs().max() > 1e-2
    causal = RegisterTokenModule(DIMS, 16, 3, 3, 0.0, heads=4, self_attention=True)
    spread(causal)
    torch.testing.assert_close(tokens(causal, 3)[:, :1], tokens(causal, 1), rtol=1e-5, atol=1e-6)


def test_every_query_sees_every_other() -> None:
    former = spread(QueryFormerHead(config(3)))
    whole = tokens(former, 3)
    for changed in range(3):
        other = spread(QueryFormerHead(config(3)))
        other.load_state_dict(former.state_dict())
        with torch.no_grad():
            # Not a constant, which layer norm takes out again.
            other.queries[changed] += torch.linspace(-2, 2, 16)  # type: ignore[index,operator]
        moved = (tokens(other, 3) - whole).abs().amax(dim=(0, 2))
        assert (moved > 1e-3).all()


def test_pooled_matryoshka_tokens_are_the_normalized_truncation() -> None:
    head = MatryoshkaHead(config(3, 0.5)).eval()
    whole = tokens(head, 3)
    numbers = whole.sum(dim=1)
    assert numbers.shape == (5, 48)
    for k in (1, 2, 3):
        cut = F.normalize(numbers[:, : 16 * k], dim=1)
        pooled = pool_kept(tokens(head, k), torch.ones(5, k, dtype=torch.bool), 3)
        torch.testing.assert_close(pooled[:, : 16 * k], cut)
        assert not pooled[:, 16 * k :].any()


@pytest.mark.parametrize(
    "head",
    [AttentionPoolHead(config(1)), QueryFormerHead(config(3)), MatryoshkaHead(config(3, 0.5))],
    ids=lambda head: type(head).__name__,
)
def test_every_parameter_learns(head: TokenHead) -> None:
    generator = torch.Generator().manual_seed(3)
    batch = {m: torch.randn(6, 5, size, generator=generator) for m, size in DIMS.items()}
    terms = RegisterTokenLoss()(head(batch), torch.arange(6))
    terms.total.backward()
    still = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_vectors_left_out_of_a_short_query_change_no_order() -> None:
    """Scores are means over the query's vectors; without the six of eight that are zero, four times as high."""
    cut = replace(config(8), aggregation="maxsim")
    whole, few = ManyVectorsHead(cut, 0).eval(), ManyVectorsHead(cut, 0, {"text": 2}).eval()
    few.load_state_dict(whole.state_dict())
    query = torch.randn(4, 2, DIMS["text"], generator=torch.Generator().manual_seed(3))
    items = l2_normalize(tokens(whole, 8))
    read = [head.tokens("text", query, None, torch.arange(8)) for head in (whole, few)]
    assert [each.shape[1] for each in read] == [8, 2]
    scores = [torch.einsum("bvd,gwd->bvgw", l2_normalize(r), items).amax(dim=-1).mean(dim=1) for r in read]
    torch.testing.assert_close(scores[1], 4 * scores[0])
