"""The mean path: contracts 1 and 4, what it begins as, and its two forms in training and serving."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fluxtalk.config import HeadConfig
from fluxtalk.errors import UsageError
from fluxtalk.model.head.baselines import MeanPoolHead
from fluxtalk.model.head.mean_path import MeanPath
from fluxtalk.model.head.registers import RegisterTokenModule

DIMS = {"image": 10, "text": 7}
DIM, TOKENS, WIDTH = 16, 5, 6
VARIANTS = [
    pytest.param({"mean_path": path, "output_projection": output, "token_dim": width}, id=f"{path}-{output}-{width}")
    for path in ("linear", "mlp")
    for output in ("shared", "per_register")
    for width in (0, WIDTH)
]
# The first token reads the registers of all overlapping tokens, or some that are no token's.
VARIANTS += [
    pytest.param(
        {"mean_path": "mlp", "output_projection": "per_register", "token_dim": WIDTH, "summary_registers": count},
        id=f"summary-{count}",
    )
    for count in (0, TOKENS + 1)
]
VARIANTS.append(pytest.param({"mean_path": "mlp", "mean_path_width": 3, "token_dim": 0}, id="mlp of three widths"))
# A mean for each register; a grid of fewer places than there are features.
VARIANTS += [
    pytest.param(
        {"mean_path": path, "output_projection": output, "token_dim": WIDTH, "regions": "image=1+1x3"},
        id=f"regions-{path}-{output}",
    )
    for path in ("linear", "mlp")
    for output in ("shared", "per_register")
]


def _head(**settings: Any) -> RegisterTokenModule:
    """A head in float64 whose parameters are no longer at their special initial values."""
    torch.manual_seed(0)
    sizes = {"dim": DIM, "heads": 2, "num_register_tokens": TOKENS, "num_overlapping_tokens": 4}
    head = RegisterTokenModule(DIMS, **{**sizes, **settings})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return head.double().eval()


def _batch(modality: str) -> tuple[Tensor, Tensor]:
    """Features of five rows of one to five vectors."""
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(5, 6, DIMS[modality], generator=generator, dtype=torch.float64)
    return features, torch.arange(6) < torch.arange(1, 6)[:, None]


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("modality", DIMS)
def test_k_tokens_are_the_first_k_of_all(settings: dict[str, Any], modality: str) -> None:
    head = _head(**settings)
    features, mask = _batch(modality)
    whole = head({modality: features}, {modality: mask}).tokens[modality]
    assert whole.shape == (5, TOKENS, settings["token_dim"] or DIM)
    for k in range(1, TOKENS + 1):
        part = head({modality: features}, {modality: mask}, k=k).tokens[modality]
        torch.testing.assert_close(part, whole[:, :k], rtol=0, atol=1e-12)
        cut = head.truncated(k)({modality: features.float()}, {modality: mask}).tokens[modality]
        torch.testing.assert_close(cut, whole[:, :k].float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", VARIANTS)
def test_padding_does_not_matter(settings: dict[str, Any]) -> None:
    """A row alone and unpadded equals the row in a batch, and a row of nothing is finite, however long."""
    head = _head(**settings)
    features, mask = _batch("image")
    mask[0] = False
    garbage = features + 1e6 * ~mask[..., None]
    tokens = head({"image": garbage}, {"image": mask}).tokens["image"]
    for row in range(1, 5):
        alone = features[row : row + 1, : int(mask[row].sum())]
        torch.testing.assert_close(head({"image": alone}).tokens["image"][0], tokens[row], rtol=0, atol=1e-9)
    nothing = torch.zeros(1, 2, DIMS["image"], dtype=torch.float64)
    empty = head({"image": nothing}, {"image": torch.zeros(1, 2, dtype=torch.bool)}).tokens["image"][0]
    assert empty.isfinite().all()
    torch.testing.assert_close(empty, tokens[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", VARIANTS)
def test_the_folded_norm_of_training_gives_the_same_tokens_and_gradients(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serving writes the normalized features out; training folds the norm into its products."""
    head = _head(**settings).train()
    features, mask = _batch("image")
    mask[0] = False
    lengths = {"image": torch.full((5,), TOKENS)}

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        head.zero_grad()
        tokens = head({"image": features}, {"image": mask}, prefix_lengths=lengths).tokens["image"]
        tokens.square().sum().backward()
        return tokens, {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}

    assert head._folds(features)
    folded, folded_gradients = run()
    monkeypatch.setattr(head, "_folds", lambda _: False)
    plain, gradients = run()
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-10)
    assert gradients.keys() == folded_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(folded_gradients[name], gradient, rtol=1e-7, atol=1e-8, msg=name)


def test_a_closed_gate_leaves_the_mean_pool_baseline() -> None:
    """What the head must never be below is part of it: with the gate at 0 it is the linear baseline."""
    head = _head(mean_path="linear")
    baseline = (
        MeanPoolHead(HeadConfig(DIMS, dim=DIM, heads=2, num_register_tokens=1, num_overlapping_tokens=1))
        .double()
        .eval()
    )
    with torch.no_grad():
        for modality in DIMS:
            path = cast(MeanPath, head.mean_path[modality])
            path.gate.zero_()
            baseline.projection[modality].load_state_dict(path.output.maps[0].state_dict())
            baseline.norm[modality].load_state_dict(head.feature_norm[modality].state_dict())
    features, mask = _batch("text")
    expected = baseline({"text": features}, {"text": mask}).tokens["text"]
    found = head({"text": features}, {"text": mask}).tokens["text"]
    torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=1e-12)


def test_the_gate_starts_small_and_is_the_modality_s_own() -> None:
    head = RegisterTokenModule(DIMS, dim=DIM, heads=2, mean_path="mlp")
    gates = {name for name, p in head.named_parameters() if p.ndim == 0 and p.item() == pytest.approx(0.1)}
    assert gates == {"mean_path.image.gate", "mean_path.text.gate"}
    assert "mean_path.image.gate" in head.modality_parameters("image")


def test_hidden_features_are_not_averaged() -> None:
    """Token dropout hides a vector from the mean as it does from attention."""
    head = _head(mean_path="linear", token_dropout=0.5).train()
    features, _ = _batch("image")
    uniform = torch.ones(5, 6)
    uniform[:, 2:4] = 0.0
    lengths = {"image": torch.full((5,), TOKENS)}
    seen = head({"image": features}, prefix_lengths=lengths, hidden={"image": uniform}).tokens["image"]
    without = features[:, [0, 1, 4, 5]]
    expected = head.eval()({"image": without}).tokens["image"]
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-10)


def test_the_first_token_reads_what_all_registers_read_and_the_others_do_not() -> None:
    head = _head(mean_path="mlp", output_projection="per_register", summary_registers=0)
    features, mask = _batch("image")
    before = head({"image": features}, {"image": mask}).tokens["image"]
    with torch.no_grad():
        head.registers[2] += torch.randn(DIM)
    after = head({"image": features}, {"image": mask}).tokens["image"]
    changed = (after - before).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [True, False, True, False, False]
    attention = head.tokens_and_attention("image", features, mask, torch.arange(2))[1]
    assert attention.shape == (5, 2, 6)


def test_the_hidden_layer_is_as_wide_as_asked_for_and_so_is_the_baselines() -> None:
    path = _head(mean_path="mlp", mean_path_width=3).mean_path["image"]
    assert isinstance(path, MeanPath)
    one = HeadConfig(DIMS, DIM, num_register_tokens=1, num_overlapping_tokens=1, heads=2, mean_path_width=3)
    baseline = MeanPoolHead(one, projection="mlp").projection["image"]
    assert isinstance(baseline, nn.Sequential)
    for hidden in (path.hidden[0], baseline[0]):
        assert isinstance(hidden, nn.Linear)
        assert (hidden.in_features, hidden.out_features) == (DIMS["image"], 3 * DIM)


def test_a_head_of_before_is_stored_as_before() -> None:
    """Configurations are hashed, so a field that a head does not use may not appear in them."""
    old = HeadConfig(DIMS, dim=DIM, heads=2).to_dict()
    assert not {"mean_path", "mean_path_width", "token_dim", "nested_dims", "summary_registers", "regions"} & set(old)
    assert HeadConfig.from_dict(old) == HeadConfig(DIMS, dim=DIM, heads=2)
    new = HeadConfig(DIMS, dim=DIM, heads=2, mean_path="mlp", token_dim=WIDTH)
    assert (new.to_dict()["mean_path"], new.to_dict()["token_dim"], new.layout.dim) == ("mlp", WIDTH, WIDTH)
    assert HeadConfig.from_dict(new.to_dict()) == new
    plain = RegisterTokenModule(DIMS, dim=DIM, heads=2)
    assert not [name for name in plain.state_dict() if name.startswith("mean_path")]
    assert isinstance(plain.mean_path, nn.ModuleDict)


@pytest.mark.parametrize(("settings", "words"), [({"mean_path": "cubic"}, "mean_path is one of"),
                                                 ({"token_dim": -1}, "token_dim is at least 1"),
                                                 ({"summary_registers": -1}, "summary_registers is at least 1, or 0"),
                                                 ({"mean_path_width": 0}, "mean_path_width is at least 1; got 0"),
                                                 ({"nested_dims": "8,x"}, "nested_dims is rising integers below 256"),
                                                 ({"nested_dims": "8,8"}, "such as 8,16,32; got '8,8'"),
                                                 ({"nested_dims": "8,256"}, "nested_dims is rising integers below"),
                                                 ({"nested_dims": "8,64", "token_dim": 64}, "below 64")])  # fmt: skip
def test_impossible_settings_are_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        HeadConfig(DIMS, **settings)
