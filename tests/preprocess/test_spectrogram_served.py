"""A spectrogram the whole way: from WAV files through a small Whisper to served vectors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from torch import nn

from fluxtalk.artifacts.engine import default_profile
from fluxtalk.datasets import load_dataset
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.stage1 import load_stage1, save_stage1
from fluxtalk.model.checkpoints.trained_run import open_run
from fluxtalk.model.encoders.spectrogram_models import spectrogram_encoder
from fluxtalk.preprocess import AudioPreprocessor, from_parts
from fluxtalk.runtime import load
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit
from fluxtalk.train.stage1.create import stage1_from_specification
from fluxtalk.train.stage1.preprocessing.hf_audio import audio_preprocessor_of
from tests.model.encoders.models import transformers
from tests.model.encoders.test_spectrogram_models import made

_RATE = 16_000
_ITEMS = 48


def small_whisper(preprocess: dict[str, Any]) -> nn.Module:
    """Build the encoder from plain options, as a factory of a specification does."""
    read = from_parts(preprocess, {})
    assert isinstance(read, AudioPreprocessor)
    return spectrogram_encoder(made("whisper")[0], read)


@pytest.mark.slow
def test_from_wav_files_through_whisper_to_served_vectors(tmp_path: Path, cache_dir: Path) -> None:
    generator = np.random.default_rng(0)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "features", "id", "split"])
        for split in ("train", "validation", "test"):
            for number in range(_ITEMS if split == "train" else 12):
                kind, stem = number % 6, f"{split}-{number}"
                time = np.arange(int(_RATE * generator.uniform(0.1, 1.5))) / _RATE
                tone = 0.5 * np.sin(2 * np.pi * 200 * 1.7**kind * time) + 0.01 * generator.standard_normal(len(time))
                soundfile.write(tmp_path / f"{stem}.wav", tone, _RATE)
                np.save(tmp_path / f"{stem}.npy", np.eye(6, dtype=np.float32)[[kind, kind]])
                writer.writerow([f"{stem}.wav", f"{stem}.npy", stem, split])
    extractor = transformers.WhisperFeatureExtractor(chunk_length=2).to_dict()
    parts, _ = audio_preprocessor_of(extractor).to_parts()
    specification = {
        "data": str(tmp_path / "pairs.csv"),
        "modalities": {
            "audio": {
                "encoder": f"module:{__name__}:small_whisper",
                "options": {"preprocess": parts},
                "preprocess": parts,
            },
            "features": {"encoder": "features:6"},
        },
    }
    (tmp_path / "stage1.json").write_text(json.dumps(specification))
    save_stage1(stage1_from_specification(tmp_path / "stage1.json"), tmp_path / "stage1.pth")
    assert load_stage1(tmp_path / "stage1.pth").modalities["audio"].preprocess == audio_preprocessor_of(extractor)
    config = TrainConfig(
        stage1_checkpoint=str(tmp_path / "stage1.pth"),
        output_dir=str(tmp_path / "runs"),
        log_name="whisper",
        batch_size=16,
        epochs=2,
        dim=24,
        heads=2,
        cache_dir=str(cache_dir),
        device="cpu",
    )
    assert fit(config).finished
    run = open_run(tmp_path / "runs" / "whisper")
    dataset = load_dataset(str(tmp_path / "pairs.csv"), cache_dir)
    bundle = write_bundle(run, dataset, tmp_path / "bundle")
    entry = bundle.manifest.modalities["audio"]
    assert [(spec.name, spec.shape) for spec in entry.inputs[:2]] == [
        ("spectrogram", ["batch", "length", 80]),
        ("mask", ["batch", "length"]),
    ]
    assert entry.max_length == 200
    assert default_profile(bundle.manifest, "audio")["length"] == [1, 200, 200]
    items = list(dataset.split("test").items["audio"].values)
    preprocess = run.stage1.modalities["audio"].preprocess
    _, expected = run.embedder("audio").embed(preprocess, items)
    with load(bundle.folder, verify=True) as embedder:
        found = embedder.embed("audio", items)
        alone = np.concatenate([embedder.embed("audio", [str(path)]) for path in items])
        assert np.abs(found - expected[:, -1]).max() <= 1e-6
        assert np.abs(alone - expected[:, -1]).max() <= 1e-6
        prepared = preprocess.prepare(items[0])
        assert np.abs(embedder.embed("audio", [prepared]) - expected[:1, -1]).max() <= 1e-6
