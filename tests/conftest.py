"""Small real parts that many tests share: data, a stage 1 checkpoint, a run, a bundle. Each is made once."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.datasets import PairDataset, glyphs, load_dataset
from fluxtalk.export.graph import trace
from fluxtalk.export.graph.to_onnx import export_onnx
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1, save_stage1
from fluxtalk.model.checkpoints.trained_run import TrainedRun, open_run
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.preprocess import Preprocessor
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit
from fluxtalk.train.stage1.pretrain import pretrain_modalities


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use the same number of threads on every machine: models are so small that a second one only waits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _trace_once() -> Iterator[None]:
    """Keep the traced graph of each embedder: the same one is exported in many tests, and tracing is most of an export.

    Tests of tracing itself call `fluxtalk.export.graph.to_onnx`, where nothing is kept.
    """
    graphs: dict[str, onnx.ModelProto] = {}

    def export_once(
        embedder: EagerEmbedder, preprocess: Preprocessor, sample: Arrays, opset: int, attention: bool
    ) -> onnx.ModelProto:
        key = hashlib.sha256(repr((embedder, embedder.head.config, embedder.modality, opset, attention)).encode())
        key.update(repr([(name, array.shape, array.dtype) for name, array in sample.items()]).encode())
        for tensor in embedder.state_dict().values():
            key.update(tensor.numpy().tobytes())
        if key.hexdigest() not in graphs:
            graphs[key.hexdigest()] = export_onnx(embedder, preprocess, sample, opset, attention)
        # A copy, because conversions work in place.
        model = onnx.ModelProto()
        model.CopyFrom(graphs[key.hexdigest()])
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "export_onnx", export_once)
        yield


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of this session's renderings and features."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def glyph_data(cache_dir: Path) -> PairDataset:
    """The whole data set `glyphs`."""
    return glyphs.load(cache_dir)


@pytest.fixture(scope="session")
def table_path(glyph_data: PairDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pairs: PNG files and names of 160 characters, two faces of each, all three splits."""
    folder = tmp_path_factory.mktemp("table")
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "id", "split"])
        for split, count in (("train", 96), ("validation", 32), ("test", 32)):
            part = glyph_data.split(split)
            images, texts = part.items["image"], part.items["text"]
            for group in range(count):
                for row in (images.groups == group).nonzero()[0][:2]:
                    name = f"{split}-{group}-{row}.png"
                    Image.fromarray(images.values[row]).save(folder / name)
                    writer.writerow([name, texts.values[group], part.ids[group], split])
    return folder / "pairs.csv"


@pytest.fixture(scope="session")
def table_data(table_path: Path, cache_dir: Path) -> PairDataset:
    """The table, read."""
    return load_dataset(str(table_path), cache_dir)


@pytest.fixture(scope="session")
def stage1_path(glyph_data: PairDataset, table_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 checkpoint of both small encoders after one step each, which names the table as its data."""
    modalities, _ = pretrain_modalities(glyph_data.split("train"), 1, 1, seed=0)
    path = tmp_path_factory.mktemp("stage1") / "stage1.pth"
    save_stage1(Stage1(modalities, data=str(table_path)), path)
    return path


@pytest.fixture(scope="session")
def stage1(stage1_path: Path) -> Stage1:
    """The checkpoint, read."""
    return load_stage1(stage1_path)


@dataclass(frozen=True)
class Made:
    """A run and the bundle exported from it."""

    run: TrainedRun
    bundle: Bundle


@pytest.fixture(scope="session")
def train_config(stage1_path: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Options of a run of a few seconds on the table."""
    return TrainConfig(
        stage1_checkpoint=str(stage1_path),
        output_dir=str(tmp_path_factory.mktemp("runs")),
        log_name="shared",
        batch_size=32,
        epochs=3,
        dim=48,
        heads=4,
        eval_every=1,
        cache_dir=str(cache_dir),
        device="cpu",
    )


@pytest.fixture(scope="session")
def made(train_config: TrainConfig, table_data: PairDataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A finished run on the table and its bundle."""
    assert fit(train_config).finished
    run = open_run(Path(train_config.output_dir) / train_config.log_name)
    bundle = write_bundle(run, table_data, tmp_path_factory.mktemp("bundles") / "bundle")
    return Made(run, bundle)
