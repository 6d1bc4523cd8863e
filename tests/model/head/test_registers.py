"""The register head: contracts 1, 2 and 4 of the design, its parameters, and two forms of one attention."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fluxtalk import tokens as numpy_tokens
from fluxtalk.errors import TokenCountError, UsageError
from fluxtalk.model.head.attention import CrossAttention
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.losses.register_loss import RegisterTokenLoss

DIMS = {"image": 10, "text": 7}
VARIANTS = [
    pytest.param({"self_attention": s, "depth": d, "block_weights": w}, id=f"{'causal' if s else 'plain'}-{d}-{w}")
    for s, d, w in itertools.product((False, True), (1, 2), ("shared", "per_modality"))
] + [pytest.param({"output_projection": "per_register"}, id="own-output")]
# 16 numbers and 2 heads: up to 7 tokens the absorbed form is the cheaper one, from 8 on the plain one.
DIM, HEADS, TOKENS, OVERLAPPING = 16, 2, 9, 4


def _head(**settings: Any) -> RegisterTokenModule:
    """A head in float64 whose registers, norms and biases are no longer at their special initial values."""
    torch.manual_seed(0)
    head = RegisterTokenModule(
        DIMS,
        **{
            "dim": DIM,
            "heads": HEADS,
            "num_register_tokens": TOKENS,
            "num_overlapping_tokens": OVERLAPPING,
            **settings,
        },
    )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return head.double().eval()


def _batch(modality: str, rows: int = 5, length: int = 6) -> tuple[Tensor, Tensor]:
    """Features (rows, length, E) and a mask with rows of different lengths, at least one feature each."""
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(rows, length, DIMS[modality], generator=generator, dtype=torch.float64)
    lengths = torch.arange(rows) % length + 1
    return features, torch.arange(length) < lengths[:, None]


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("modality", DIMS)
def test_k_tokens_are_the_first_k_of_all(settings: dict[str, Any], modality: str) -> None:
    """Contract 1, over both forms of cross-attention: few tokens are computed absorbed, all of them plain."""
    head = _head(**settings)
    features, mask = _batch(modality)
    whole = head({modality: features}, {modality: mask}).tokens[modality]
    assert whole.shape == (5, TOKENS, DIM)
    for k in range(1, TOKENS + 1):
        part = head({modality: features}, {modality: mask}, k=k).tokens[modality]
        torch.testing.assert_close(part, whole[:, :k], rtol=0, atol=1e-12)


def test_the_prefix_check_sees_attention_to_later_registers() -> None:
    """Non-causal self-attention is what contract 1 forbids: the comparison above would notice it."""
    head = _head(self_attention=True)
    for block in head.blocks:
        block.self_attention.causal = False  # type: ignore[union-attr]
    features, mask = _batch("image")
    whole = head({"image": features}, {"image": mask}).tokens["image"]
    part = head({"image": features}, {"image": mask}, k=3).tokens["image"]
    assert (part - whole[:, :3]).abs().max() > 1e-3


@pytest.mark.parametrize("settings", VARIANTS)
def test_prefix_invariance_in_single_precision(settings: dict[str, Any]) -> None:
    """Serving uses float32."""
    head = _head(**settings).float()
    features, mask = _batch("text")
    whole = head({"text": features.float()}, {"text": mask}).tokens["text"]
    for k in (1, OVERLAPPING, TOKENS - 1):
        part = head({"text": features.float()}, {"text": mask}, k=k).tokens["text"]
        assert (part - whole[:, :k]).abs().max() <= 1e-5 * max(1.0, whole.abs().max().item())


def test_tokens_differ_from_each_other_and_between_modalities() -> None:
    """Contract 1 would hold trivially for tokens that are all the same."""
    head = _head()
    features, mask = _batch("image")
    tokens = head({"image": features}, {"image": mask}).tokens["image"][0]
    assert torch.cdist(tokens, tokens).add(torch.eye(TOKENS) * 9).min() > 0.1


def test_pooled_is_the_normalized_mean_of_the_overlapping_tokens_among_k() -> None:
    """Contract 2 by a plain loop; above the number of overlapping tokens nothing changes any more."""
    head = _head()
    features, mask = _batch("image")
    tokens = head({"image": features}, {"image": mask}).tokens["image"]
    last: Tensor | None = None
    for k in range(1, TOKENS + 1):
        outputs = head({"image": features}, {"image": mask}, k=k)
        index = torch.arange(k)
        every_prefix = head.embeddings(head.tokens("image", features, mask, index), index)
        for row in range(len(features)):
            mean = sum((tokens[row, j] for j in range(min(k, OVERLAPPING))), torch.zeros(DIM)) / min(k, OVERLAPPING)
            expected = mean / mean.norm()
            torch.testing.assert_close(outputs.pooled("image")[row], expected, rtol=0, atol=1e-12)
            # The exported graph gives the embedding of every prefix at once.
            torch.testing.assert_close(every_prefix[row, k - 1], expected, rtol=0, atol=1e-12)
        if k > OVERLAPPING:
            assert last is not None
            torch.testing.assert_close(outputs.pooled("image"), last, rtol=0, atol=1e-12)
        elif last is not None:
            assert (outputs.pooled("image") - last).abs().max() > 1e-3
        last = outputs.pooled("image")


def test_pooling_agrees_with_its_numpy_twin() -> None:
    """The runtime pools in numpy; both are the same embedding."""
    head = _head()
    features, mask = _batch("text")
    index = torch.arange(TOKENS)
    tokens = head.tokens("text", features, mask, index)
    embeddings = head.embeddings(tokens, index).detach().numpy()
    for k in range(1, TOKENS + 1):
        twin = numpy_tokens.pool(tokens.detach().float().numpy(), OVERLAPPING, k)
        np.testing.assert_allclose(embeddings[:, k - 1], twin, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [0, -1, TOKENS + 1, 1.0, True, "2"])
def test_k_out_of_range_names_the_range(k: Any) -> None:
    head = _head()
    features, _ = _batch("image")
    with pytest.raises(TokenCountError, match=rf"from 1 to {TOKENS}, .*got {k!r}"):
        head({"image": features}, k=k)


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("garbage", [1e6, -3e3])
def test_neighbors_and_padding_do_not_matter(settings: dict[str, Any], garbage: float) -> None:
    """Contract 4: each row alone and unpadded equals the row in a batch, whatever its padding holds."""
    head = _head(**settings)
    features, mask = _batch("image")
    padded = torch.cat([features, torch.zeros(5, 4, DIMS["image"])], dim=1)
    longer = torch.cat([mask, torch.zeros(5, 4, dtype=torch.bool)], dim=1)
    noise = torch.randn(padded.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padded = torch.where(longer[..., None], padded, garbage * noise)
    together = head({"image": padded}, {"image": longer}).tokens["image"]
    for row in range(5):
        alone = features[row : row + 1, mask[row]]
        expected = head({"image": alone}).tokens["image"][0]
        torch.testing.assert_close(together[row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["plain", "absorbed"])
def test_a_row_without_features_is_the_same_at_every_padded_length(form: str) -> None:
    """The output is finite, and its padding, whatever it holds, has no effect."""
    head = _head(depth=2, self_attention=True)
    for block in head.blocks:
        block.cross_attention.form = form  # type: ignore[union-attr]
    expected: Tensor | None = None
    for length in (1, 2, 5, 9):
        features = 50 * torch.randn(2, length, DIMS["image"], dtype=torch.float64)
        mask = torch.stack([torch.zeros(length), torch.ones(length)]).bool()
        tokens = head({"image": features}, {"image": mask}).tokens["image"]
        assert tokens.isfinite().all()
        if expected is None:
            expected = tokens[0]
        torch.testing.assert_close(tokens[0], expected, rtol=0, atol=1e-12)
        assert (tokens[1] - expected).abs().max() > 1e-3


def test_no_mask_means_no_padding() -> None:
    head = _head()
    features, _ = _batch("image")
    everything = torch.ones(features.shape[:2], dtype=torch.bool)
    expected = head({"image": features}, {"image": everything}).tokens["image"]
    assert torch.equal(head({"image": features}).tokens["image"], expected)


def test_all_modalities_share_one_register_parameter() -> None:
    """A known weakness of the specified module: a copy per modality. Another modality costs its projections only."""
    sizes = {"image": 10, "text": 7, "audio": 12}
    two = RegisterTokenModule({"image": 10, "text": 7}, dim=16, heads=2)
    three = RegisterTokenModule(sizes, dim=16, heads=2)
    assert [tuple(p.shape) for n, p in three.named_parameters() if "register" in n] == [(4, 16)]

    def count(head: nn.Module) -> int:
        return sum(p.numel() for p in head.parameters())

    feature_norm, key, value = 2 * 12, 12 * 16, 12 * 16 + 16
    assert count(three) - count(two) == feature_norm + key + value


def test_registers_are_not_copied_for_every_sample() -> None:
    """The first block's queries are projected once, not once per sample."""
    head = _head()
    seen: list[tuple[int, ...]] = []
    query = head.blocks[0].cross_attention.query  # type: ignore[union-attr]
    query.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape)))  # type: ignore[union-attr]
    features, mask = _batch("image")
    head({"image": features}, {"image": mask})
    assert seen == [(TOKENS, DIM)]


def test_registers_start_different() -> None:
    """Equal registers would stay equal: they get the same gradient."""
    registers = RegisterTokenModule(DIMS, dim=64, heads=2).registers.detach()
    assert 0.015 < registers.std().item() < 0.025
    assert torch.cdist(registers, registers).add(torch.eye(4)).min() > 0.05


@pytest.mark.parametrize("settings", VARIANTS)
def test_the_gradient_reaches_every_parameter(settings: dict[str, Any]) -> None:
    """Through the real loss, in training mode."""
    head = _head(nested_dropout_rate=0.5, **settings).float().train()
    loss = RegisterTokenLoss(1.0)
    features = {m: torch.randn(16, 6, size) for m, size in DIMS.items()}
    loss(head(features), torch.arange(16)).total.backward()
    named = [*head.named_parameters(), *loss.named_parameters()]
    untouched = [name for name, p in named if p.grad is None or not p.grad.abs().max() > 0]
    assert untouched == []
    assert (head.registers.grad.norm(dim=1) > 0).all()  # type: ignore[union-attr]


def _attention(form: str, feature_dim: int = 20) -> CrossAttention:
    torch.manual_seed(5)
    return CrossAttention(24, {"image": feature_dim, "text": 3}, heads=4, form=form).double()


@pytest.mark.parametrize("shared_queries", [True, False], ids=["x_ND", "x_BND"])
def test_absorbed_and_plain_attention_are_the_same_function(shared_queries: bool) -> None:
    """Same numbers and same gradients, of parameters, queries and features."""
    results = {}
    for form in ("plain", "absorbed"):
        attention = _attention(form)
        generator = torch.Generator().manual_seed(1)
        shape = (3, 24) if shared_queries else (5, 3, 24)
        x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        features = torch.randn(5, 6, 20, generator=generator, dtype=torch.float64, requires_grad=True)
        mask = torch.arange(6) < torch.tensor([6, 1, 3, 0, 5])[:, None]
        y = attention(x, features, mask, "image")
        assert y.shape == (5, 3, 24)
        assert (y[3] == 0).all()
        weight = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        (y * weight).sum().backward()
        gradients = {n: p.grad for n, p in attention.named_parameters() if "text" not in n}
        results[form] = {"y": y.detach(), "x": x.grad, "features": features.grad, **gradients}
    assert results["plain"].keys() == results["absorbed"].keys()
    for name, expected in results["plain"].items():
        assert expected is not None
        assert expected.abs().max() > 1e-3, name
        torch.testing.assert_close(results["absorbed"][name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["plain", "absorbed"])
@pytest.mark.parametrize("shared_queries", [True, False], ids=["x_ND", "x_BND"])
def test_cross_attention_equals_pytorchs(form: str, shared_queries: bool) -> None:
    """`nn.MultiheadAttention` with the same weights as a second implementation."""
    attention = _attention(form)
    reference = nn.MultiheadAttention(24, 4, kdim=20, vdim=20, batch_first=True).double()
    weights = attention.state_dict()
    # PyTorch has a key bias, which changes nothing: any number will do.
    biases = [weights["query.bias"], torch.randn(24), weights["value.image.bias"]]
    reference.load_state_dict(
        {
            "q_proj_weight": weights["query.weight"],
            "k_proj_weight": weights["key.image.weight"],
            "v_proj_weight": weights["value.image.weight"],
            "in_proj_bias": torch.cat(biases),
            "out_proj.weight": weights["out.weight"],
            "out_proj.bias": weights["out.bias"],
        }
    )
    features = torch.randn(4, 6, 20, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5])[:, None]
    x = torch.randn((3, 24) if shared_queries else (4, 3, 24), dtype=torch.float64)
    queries = x.expand(4, -1, -1) if shared_queries else x
    expected, _ = reference(queries, features, features, key_padding_mask=~mask, need_weights=False)
    torch.testing.assert_close(attention(x, features, mask, "image"), expected, rtol=0, atol=1e-12)


def test_auto_takes_the_cheaper_form() -> None:
    """Absorbed where tokens x heads is below the width."""
    attention = _attention("auto")
    features, mask = torch.randn(2, 5, 20, dtype=torch.float64), torch.ones(2, 5, dtype=torch.bool)
    projected: list[int] = []
    attention.key["image"].register_forward_hook(lambda *_: projected.append(1))
    attention(torch.randn(5, 24, dtype=torch.float64), features, mask, "image")
    assert not projected
    attention(torch.randn(6, 24, dtype=torch.float64), features, mask, "image")
    assert projected


@pytest.mark.parametrize(
    ("features", "mask", "expected"),
    [
        pytest.param({"audio": torch.zeros(2, 3, 4)}, None, "image, text; got features of 'audio'", id="modality"),
        pytest.param({"image": torch.zeros(2, 3, 9)}, None, r"\(batch, length, 10\); got \(2, 3, 9\)", id="dim"),
        pytest.param({"image": torch.zeros(2, 10)}, None, r"\(batch, length, 10\); got \(2, 10\)", id="rank"),
        pytest.param(
            {"image": torch.zeros(2, 3, 10)},
            torch.ones(2, 4, dtype=torch.bool),
            r"mask of image is bool \(2, 3\); got torch.bool \(2, 4\)",
            id="mask-shape",
        ),
        pytest.param(
            {"image": torch.zeros(2, 3, 10)}, torch.ones(2, 3), r"mask of image is bool .*float32", id="mask-type"
        ),
    ],
)
def test_what_does_not_fit_is_refused(features: dict[str, Tensor], mask: Tensor | None, expected: str) -> None:
    head = RegisterTokenModule(DIMS, dim=16, heads=2)
    with pytest.raises(UsageError, match=expected):
        head(features, None if mask is None else {"image": mask})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_overlapping_tokens": 0}, "num_overlapping_tokens is in 1..4"),
        ({"num_overlapping_tokens": 5}, "num_overlapping_tokens is in 1..4"),
        ({"num_register_tokens": 0}, "num_register_tokens is at least 1"),
        ({"heads": 3}, "multiple of its heads"),
        ({"depth": 0}, "depth is at least 1"),
        ({"block_weights": "none"}, "shared, per_modality"),
        ({"output_projection": "none"}, "shared, per_register"),
        ({"aggregation": "sum"}, "mean, concat, maxsim"),
        ({"dims": {}}, "at least one modality"),
        ({"dims": {"Image": 3}}, "lower-case"),
        ({"dims": {"keys": 3}}, "choose another name"),
    ],
)
def test_impossible_heads_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        RegisterTokenModule(**{"dims": DIMS, "dim": 16, "heads": 2, **settings})


def test_feature_and_token_dropout_act_in_training_only() -> None:
    """Hiding features never hides all of a row."""
    head = _head(token_dropout=0.9, feature_dropout=0.5, nested_dropout_rate=0.0)
    features, mask = _batch("image")
    once = head({"image": features}, {"image": mask}).tokens["image"]
    assert torch.equal(once, head({"image": features}, {"image": mask}).tokens["image"])
    empty = head({"image": features[:1]}, {"image": torch.zeros(1, 6, dtype=torch.bool)}).tokens["image"]
    head.train()
    for _ in range(10):
        tokens = head({"image": features}, {"image": mask}).tokens["image"]
        assert (tokens - once).abs().max() > 1e-3
        assert ((tokens - empty).abs().amax(dim=(1, 2)) > 1e-3).all()
