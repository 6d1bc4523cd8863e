"""wav2vec 2.0, HuBERT and WavLM: the library's features, padding that changes nothing, and ONNX."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fluxtalk.errors import UsageError
from fluxtalk.model.encoders.speech import SpeechEncoder
from tests.model.encoders.models import require_parity, rows, speech_model

TOLERANCE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # the library's own, WavLM
_KINDS = [
    ("Wav2Vec2", "group", False, {}),
    ("Wav2Vec2", "layer", True, {}),
    ("Hubert", "group", False, {}),
    ("Hubert", "layer", True, {}),
    ("Hubert", "group", False, {"conv_pos_batch_norm": True}),
    ("Hubert", "group", False, {"feat_proj_layer_norm": False}),
    ("WavLM", "group", False, {}),
    ("WavLM", "layer", True, {}),
]
kinds = pytest.mark.parametrize(("kind", "norm", "stable", "settings"), _KINDS)


@kinds
def test_features_are_the_librarys_of_the_sound_alone_however_it_is_padded(
    kind: str, norm: str, stable: bool, settings: dict[str, Any]
) -> None:
    model = speech_model(kind, norm, stable, **settings)
    encoder = SpeechEncoder(model)
    lengths = [8000, 400, 5001, 0]
    samples, mask = rows(lengths, 8000)
    with torch.inference_mode():
        features, kept = encoder(samples, mask)
        padded, kept_padded = encoder(F.pad(samples, (0, 16_000), value=0.7), F.pad(mask, (0, 16_000)))
        assert torch.isfinite(features).all()
        for row, length in enumerate(lengths[:3]):
            expected = model(samples[row : row + 1, :length]).last_hidden_state[0]
            count = len(expected)
            assert kept[row].tolist() == [True] * count + [False] * (kept.shape[1] - count)
            assert int(kept_padded[row].sum()) == count
            for found in (features, padded):
                assert (found[row, :count] - expected).abs().max() <= TOLERANCE
        assert not kept[3].any()


def test_the_library_itself_depends_on_padding_where_it_normalizes_over_time() -> None:
    model = speech_model("Wav2Vec2", "group", False)
    samples, mask = rows([8000], 8000)
    with torch.inference_mode():
        alone = model(samples).last_hidden_state
        padded = model(F.pad(samples, (0, 16_000)), attention_mask=F.pad(mask, (0, 16_000)).long()).last_hidden_state
    assert (padded[:, : alone.shape[1]] - alone).abs().max() > 1


def test_a_sound_shorter_than_the_receptive_field_is_extended_by_silence() -> None:
    model = speech_model("Hubert", "group", False)
    samples, mask = rows([100], 100)
    with torch.inference_mode():
        features, kept = SpeechEncoder(model)(samples, mask)
        expected = model(F.pad(samples, (0, 300))).last_hidden_state
    assert kept.sum() == expected.shape[1] == 1
    assert (features[:, :1] - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("norm", "stable"), [("group", False), ("layer", True)])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hidden_layers_are_counted_as_the_library_counts_them(norm: str, stable: bool, layer: int) -> None:
    model = speech_model("Wav2Vec2", norm, stable)
    samples, mask = rows([4000], 4000)
    with torch.inference_mode():
        expected = model(samples, output_hidden_states=True).hidden_states[layer]
        features, _ = SpeechEncoder(model, hidden_layer=layer)(samples, mask)
    assert (features[:, : expected.shape[1]] - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("norm", ["group", pytest.param("layer", marks=pytest.mark.slow)])
def test_the_graph_agrees_with_eager(norm: str) -> None:
    tiny = {"conv_dim": (16,) * 3, "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_hidden_layers": 1}
    encoder = SpeechEncoder(speech_model("Hubert", norm, norm == "layer", **tiny)).eval()
    batches = [rows([300], 300), rows([600, 29, 0], 600), rows([1, 10], 10)]
    require_parity(encoder, rows([400, 250], 400), batches)


@pytest.mark.slow
@kinds
def test_the_graph_of_every_kind_agrees_with_eager(
    kind: str, norm: str, stable: bool, settings: dict[str, Any]
) -> None:
    encoder = SpeechEncoder(speech_model(kind, norm, stable, **settings)).eval()
    batches = [rows([3000], 3000), rows([6000, 399, 0], 6000), rows([1, 100], 100)]
    require_parity(encoder, rows([4000, 2500], 4000), batches)


def test_what_cannot_be_masked_is_refused() -> None:
    with pytest.raises(UsageError, match="hidden layers 0 to 2; got 3"):
        SpeechEncoder(speech_model("Hubert", "group", False), hidden_layer=3)
    with pytest.raises(UsageError, match="wav2vec2 model has an adapter"):
        SpeechEncoder(speech_model("Wav2Vec2", "layer", True, add_adapter=True))
    with pytest.raises(UsageError, match="A speech encoder is one of wav2vec2, hubert, wavlm; got 'unispeech'"):
        SpeechEncoder(speech_model("UniSpeech", "group", False))
