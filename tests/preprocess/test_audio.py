"""Sound: decoding, refusals, and the whole way from WAV files to served vectors."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxtalk.datasets import load_dataset
from fluxtalk.errors import ArtifactError, BackendError, InputError, UsageError
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.stage1 import load_stage1, save_stage1
from fluxtalk.model.checkpoints.trained_run import open_run
from fluxtalk.preprocess import AudioPreprocessor, from_parts
from fluxtalk.runtime import load
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit
from fluxtalk.train.stage1.create import stage1_from_specification

RATE = 8000
_WINDOW = 200
_NAMES = ("low", "middle", "high", "rising", "falling", "noise")


def tone(frequency: float, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, form: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "subtype", "tolerance"),
    [("WAV", "PCM_16", 1e-4), ("WAV", "FLOAT", 0), ("FLAC", "PCM_24", 1e-6), ("OGG", "VORBIS", 0.05)],
)
def test_every_way_to_give_a_sound_gives_the_same_samples(
    tmp_path: Path, form: str, subtype: str, tolerance: float
) -> None:
    samples = tone(440)
    preprocess = AudioPreprocessor(RATE, 60 * RATE)
    data = encoded(samples, RATE, form, subtype)
    path = tmp_path / f"tone.{form.lower()}"
    path.write_bytes(data)
    found = preprocess.prepare(path)
    assert found.dtype == np.float32
    assert found.shape == samples.shape
    assert np.abs(found - samples).max() <= tolerance
    for item in (str(path), data):
        assert np.array_equal(preprocess.prepare(item), found)
    assert np.array_equal(preprocess.prepare((samples, RATE)), samples)


def test_integers_are_scaled_and_channels_averaged() -> None:
    preprocess = AudioPreprocessor(RATE, RATE)
    whole = np.array([[-32768, 0], [16384, 16384], [0, 8192]], dtype=np.int16)
    assert np.array_equal(preprocess.prepare((whole, RATE)), np.array([-0.5, 0.5, 0.125], np.float32))
    wide = np.array([-(2**31), 2**30], dtype=np.int32)
    assert np.array_equal(preprocess.prepare((wide, RATE)), np.array([-1, 0.5], np.float32))
    stereo = np.stack([tone(300), tone(700)], axis=1)
    np.testing.assert_allclose(
        preprocess.prepare(encoded(stereo, RATE, subtype="FLOAT")), stereo.mean(axis=1), atol=1e-7
    )


@pytest.mark.parametrize("rate", [44100, 16000, 6000])
def test_other_rates_are_resampled_to_the_same_sound(rate: int) -> None:
    found = AudioPreprocessor(RATE, RATE).prepare((tone(440, rate=rate), rate))
    expected = tone(440)
    assert abs(len(found) - len(expected)) <= 1
    # The ends ring: there the sound begins and ends abruptly.
    middle = slice(400, len(expected) - 400)
    assert np.abs(found[middle] - expected[middle]).max() <= 2e-3


def test_long_sounds_are_cut_and_no_more_is_read_than_that_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    long = tone(440, seconds=20, rate=16000)
    whole, cut = AudioPreprocessor(RATE, 20 * RATE), AudioPreprocessor(RATE, 1000)
    expected = whole.prepare((long, 16000))[:1000]
    np.testing.assert_allclose(cut.prepare((long, 16000)), expected, atol=1e-4)
    asked: list[int] = []
    read = soundfile.SoundFile.read

    def listening(self: soundfile.SoundFile, frames: int = -1, **more: object) -> np.ndarray:
        asked.append(frames)
        found: np.ndarray = read(self, frames, **more)
        return found

    monkeypatch.setattr(soundfile.SoundFile, "read", listening)
    np.testing.assert_allclose(cut.prepare(encoded(long, 16000, subtype="FLOAT")), expected, atol=1e-4)
    assert len(cut.prepare(encoded(long, 16000))) == 1000
    assert max(asked) < 5000


def test_batches_are_padded_and_masked() -> None:
    preprocess = AudioPreprocessor(RATE, RATE)
    batch = preprocess.collate([np.ones(3, np.float32), np.ones(5, np.float32)])
    assert list(batch) == list(preprocess.input_names) == ["samples", "mask"]
    assert batch["samples"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert preprocess.length(np.ones(5, np.float32)) == 5


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("gone.wav", "gone.wav does not exist"),
        (b"", "cannot be read"),
        (b"no sound at all", "cannot be read"),
        (encoded(tone(440), RATE)[:1000], "cut off"),
        (encoded(tone(440), RATE, "FLAC")[:1000], "cannot be read"),
        (encoded(tone(440), RATE, "OGG")[:2000], "cannot be read"),
        (encoded(np.empty(0), RATE), "no samples"),
        ((np.empty(0, np.float32), RATE), "no samples"),
        ((np.array([0, np.nan], np.float32), RATE), "NaN"),
        ((np.zeros(9, np.uint8), RATE), "uint8"),
        ((np.zeros((2, 2, 2), np.float32), RATE), r"\(2, 2, 2\)"),
        ((np.zeros((2, 9), np.float32), RATE), r"\(2, 9\)"),
        ((np.zeros(9, np.float32), 0), "rate"),
        ((np.zeros(9, np.float32), 8000.5), "rate"),
        ((np.zeros(9, np.float32),), "rate"),
        (np.zeros(9, np.float32), "and its rate"),
        (None, "NoneType"),
    ],
)
def test_a_bad_sound_is_refused_in_one_sentence(item: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        AudioPreprocessor(RATE, RATE).prepare(item)
    assert "\n" not in str(raised.value)
    assert "object at" not in str(raised.value)


def test_a_missing_library_is_named_and_needed_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(tone(440), 16000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "soxr", None)
    preprocess = AudioPreprocessor(RATE, RATE)
    assert len(preprocess.prepare((tone(440), RATE))) == 4000
    with pytest.raises(BackendError, match=r"soxr.*fluxtalk\[audio\]"):
        preprocess.prepare((tone(440), 16000))
    with pytest.raises(BackendError, match=r"soundfile.*fluxtalk\[audio\]"):
        preprocess.prepare(data)


def test_settings_are_kept_and_checked() -> None:
    config, files = AudioPreprocessor(16000, 480000).to_parts()
    assert (config, files) == ({"kind": "audio", "sample_rate": 16000, "max_length": 480000}, {})
    assert from_parts(json.loads(json.dumps(config)), files) == AudioPreprocessor(16000, 480000)
    with pytest.raises(ArtifactError, match="channels"):
        from_parts({**config, "channels": 2}, {})
    for sample_rate, max_length in ((0, 9), (RATE, 0)):
        with pytest.raises(UsageError, match="Audio preprocessing needs"):
            AudioPreprocessor(sample_rate, max_length)


class Spectrum(nn.Module):
    """One feature for each window of samples: a strided convolution, then another over features."""

    dim = 24

    def __init__(self) -> None:
        super().__init__()
        self.windows = nn.Conv1d(1, 32, _WINDOW, stride=_WINDOW)
        self.mixing = nn.Conv1d(32, self.dim, 3, padding=1)

    def forward(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # A window that has begun counts; what lies behind the end is zero, in a batch as alone.
        samples = F.pad(samples * mask, (0, _WINDOW - 1))[:, None]
        kept = F.conv1d(
            F.pad(mask.float(), (0, _WINDOW - 1))[:, None], mask.new_ones(1, 1, _WINDOW).float(), None, _WINDOW
        )
        kept = (kept > 0).float()
        features = F.gelu(self.windows(samples)) * kept
        return self.mixing(features).transpose(1, 2), kept[:, 0] > 0


def _sound(name: str, generator: np.random.Generator) -> np.ndarray:
    seconds = float(generator.uniform(0.1, 0.3))
    time = np.arange(int(seconds * RATE)) / RATE
    if name == "noise":
        return (0.2 * generator.standard_normal(len(time))).astype(np.float32)
    low, high = {
        "low": (200, 200), "middle": (700, 700), "high": (2000, 2000), "rising": (200, 2000), "falling": (2000, 200)
    }[name]  # fmt: skip
    swept = np.cumsum(np.linspace(low, high, len(time))) / RATE
    return (0.5 * np.sin(2 * np.pi * (swept + generator.uniform()))).astype(np.float32)


@pytest.mark.usefixtures("no_trial_export")
def test_from_wav_files_to_served_vectors(tmp_path: Path, cache_dir: Path) -> None:
    generator = np.random.default_rng(0)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "features", "id", "split"])
        for split, count in (("train", 96), ("validation", 24), ("test", 24)):
            for number in range(count):
                kind = number % len(_NAMES)
                stem = f"{split}-{number}"
                soundfile.write(tmp_path / f"{stem}.wav", _sound(_NAMES[kind], generator), RATE)
                vectors = np.eye(6, dtype=np.float32)[[kind]] + 0.1 * generator.standard_normal((2, 6), np.float32)
                np.save(tmp_path / f"{stem}.npy", vectors)
                writer.writerow([f"{stem}.wav", f"{stem}.npy", stem, split])
    specification = {
        "data": str(tmp_path / "pairs.csv"),
        "modalities": {
            "audio": {
                "encoder": f"module:{__name__}:Spectrum",
                "preprocess": {"kind": "audio", "sample_rate": RATE, "max_length": RATE},
            },
            "features": {"encoder": "features:6"},
        },
    }
    (tmp_path / "stage1.json").write_text(json.dumps(specification))
    torch.manual_seed(0)
    save_stage1(stage1_from_specification(tmp_path / "stage1.json"), tmp_path / "stage1.pth")
    assert load_stage1(tmp_path / "stage1.pth").modalities["audio"].spec.dim == Spectrum.dim
    config = TrainConfig(
        stage1_checkpoint=str(tmp_path / "stage1.pth"),
        output_dir=str(tmp_path / "runs"),
        log_name="sound",
        batch_size=32,
        epochs=4,
        dim=24,
        heads=2,
        eval_every=2,
        cache_dir=str(cache_dir),
        device="cpu",
    )
    assert fit(config).finished
    run = open_run(tmp_path / "runs" / "sound")
    dataset = load_dataset(str(tmp_path / "pairs.csv"), cache_dir)
    bundle = write_bundle(run, dataset, tmp_path / "bundle")
    items = list(dataset.split("test").items["audio"].values)
    preprocess = run.stage1.modalities["audio"].preprocess
    _, expected = run.embedder("audio").embed(preprocess, items)
    with load(bundle.folder, verify=True) as embedder:
        assert embedder.input_kind("audio") == "audio"
        for k in range(1, embedder.num_tokens + 1):
            found = embedder.embed("audio", items, k)
            assert np.abs(found - expected[:, k - 1]).max() <= 1e-6
        alone = np.concatenate([embedder.embed("audio", [str(path)]) for path in items])
        assert np.abs(alone - expected[:, -1]).max() <= 1e-6
        samples, rate = soundfile.read(items[0], dtype="float32")
        assert np.abs(embedder.embed("audio", [(samples, rate)]) - expected[:1, -1]).max() <= 1e-6
        with pytest.raises(InputError, match=r"audio item 1: .*gone\.wav"):
            embedder.embed("audio", [items[0], tmp_path / "gone.wav"])
