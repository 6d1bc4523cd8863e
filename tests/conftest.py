"""Small real parts that many tests share: data, a stage 1 checkpoint, a run, a bundle. Each is made once."""

from __future__ import annotations

import csv
import gc
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.artifacts.files import hash_file
from fluxtalk.datasets import PairDataset, glyphs, load_dataset
from fluxtalk.export.graph import trace
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1, save_stage1
from fluxtalk.model.checkpoints.trained_run import TrainedRun, open_run
from fluxtalk.runtime.backends.measure import MEASURE_VARIABLE
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit
from fluxtalk.train.stage1.pretrain import pretrain_modalities
from tests.traced import keep_in, read_operators_once, traced_once

ROOT = Path(__file__).resolve().parents[1]
MAKERS = ("torch", "onnx", "onnxscript", "onnx-ir", "matplotlib", "pillow", "transformers", "timm")
"""Libraries that make a graph or a rendering."""
CODE = ("fluxtalk", "train", "export", "runtime", "bench", "tests")
"""What an export depends on."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use the same number of threads on every machine: models are so small that a second one only waits."""
    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what was imported, and come seldom: a trace makes millions of objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _no_measuring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let ``auto`` choose by its rule on every machine, and leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTALK_CACHE_DIR", str(tmp_path_factory.mktemp("user-cache")))
        patch.setenv(MEASURE_VARIABLE, "never")
        yield


Kept = Callable[..., Path]


@pytest.fixture(scope="session")
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Give a folder in pytest's cache, for what each process of `make test` would make anew.

    It is called with a name, and with the parts of the repository that what is kept depends on: a change of one of
    their files, or of a library's version, begins an empty folder.
    """
    cache = getattr(request.config, "cache", None)

    def folder(name: str, *parts: str) -> Path:
        if cache is None:  # -p no:cacheprovider
            return tmp_path_factory.mktemp(name)
        digest = hashlib.sha256(repr([sys.version, *(f"{made} {version(made)}" for made in MAKERS)]).encode())
        for part in parts:
            for file in sorted((ROOT / part).rglob("*.py")):
                digest.update(f"{file.relative_to(ROOT)} {hash_file(file)}".encode())
        found: Path = cache.mkdir(f"{name}-{digest.hexdigest()[:16]}")
        for old in found.parent.glob(f"{name}-*"):
            # Tests of other code may be running.
            if time.time() - old.stat().st_mtime > 3600 and old != found:
                shutil.rmtree(old, ignore_errors=True)
        return found

    return folder


@pytest.fixture(scope="session", autouse=True)
def _trace_once(kept: Kept) -> Iterator[None]:
    """Trace each embedder once, in however many tests it is exported; and trace fast."""
    keep_in(kept("graphs", *CODE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "export_onnx", traced_once)
        read_operators_once(patch)
        yield


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of this session's renderings and features."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def glyph_data(kept: Kept, cache_dir: Path) -> PairDataset:
    """The whole data set `glyphs`; its rendering is in ``cache_dir``."""
    folder = kept("glyphs", "fluxtalk/datasets", "fluxtalk/artifacts")
    with FileLock(folder / ".lock"):
        data = glyphs.load(folder)
    for file in folder.glob("glyphs-*"):
        shutil.copy(file, cache_dir)
    return data


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
def stage1_path(
    kept: Kept, glyph_data: PairDataset, table_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A stage 1 checkpoint of both small encoders after one step each, which names the table as its data."""
    first = kept("stage1", *CODE) / "stage1.pth"
    with FileLock(f"{first}.lock"):
        if not first.is_file():
            save_stage1(Stage1(pretrain_modalities(glyph_data.split("train"), 1, 1, seed=0)[0]), first)
    path = tmp_path_factory.mktemp("stage1") / "stage1.pth"
    save_stage1(Stage1(load_stage1(first).modalities, data=str(table_path)), path)
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
def made(
    kept: Kept, train_config: TrainConfig, table_data: PairDataset, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """A finished run on the table and its bundle, which one process exports for all."""
    assert fit(train_config).finished
    run = open_run(Path(train_config.output_dir) / train_config.log_name)
    first = kept("bundles", *CODE) / run.head.space_hash()
    with FileLock(f"{first}.lock"):
        if not first.is_dir():
            write_bundle(run, table_data, first)
    return Made(run, read_bundle(shutil.copytree(first, tmp_path_factory.mktemp("bundles") / "bundle")))


@pytest.fixture
def no_trial_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the trial of an export, which takes seconds for each encoder, in a test about something else."""
    monkeypatch.setattr("fluxtalk.train.stage1.probe.try_exporting", lambda *_: None)
