"""One encoder through everything: pack, features and preprocessing against its library, training, export, an engine."""

from __future__ import annotations

import csv
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from click.testing import CliRunner

from bench.encoders.families import Family
from bench.encoders.items import RATE, names, picture, sound
from bench.encoders.references import LibraryEncoder
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.datasets import load_dataset
from fluxtalk.errors import FluxTalkError
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.to_tensorrt.cli import trt
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.stage1 import Stage1Modality, load_stage1, save_stage1
from fluxtalk.model.checkpoints.trained_run import open_run
from fluxtalk.model.encoders import to_tensors
from fluxtalk.preprocess import AudioPreprocessor, ImagePreprocessor, Preprocessor
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.verify import verify_bundle
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit
from fluxtalk.train.stage1.pack import pack_encoders

ITEMS = 48
COMPARED = 6
_OTHER = 8
_SAME_LEVEL = 1e-3


@dataclass(frozen=True)
class Proof:
    """What one encoder went through; a stage that was not reached is None."""

    family: str
    kind: str
    features: float | None = None
    """Largest difference of features from the library's own on the same input, relative to their largest magnitude."""
    preprocessing: float | None = None
    """Largest difference of that input from the library's: levels of 255, token ids, or samples and mel bins."""
    trained: bool = False
    """True if a head was trained over it for an epoch."""
    parity: float | None = None
    """Largest difference of embeddings of the exported graph from eager PyTorch, over every k."""
    promise: float | None = None
    """Largest difference that the bundle promises."""
    engine: str | None = None
    """Compiled engine of TensorRT-RTX, or why there is none."""
    stopped: str | None = None
    """Sentence by which a stage refused the encoder."""
    seconds: float = 0.0


def prove(family: Family, folder: Path, compile_engine: bool) -> Proof:
    """Take an encoder as far as it goes.

    Args:
        folder: empty; gets the encoder, the data, the run and the bundle.
        compile_engine: compile with TensorRT-RTX too, which takes seconds.
    """
    started = time.monotonic()
    proof = Proof(family.name, family.kind)
    try:
        source = family.save(folder / "encoder")
        stage1 = pack_encoders({family.kind: source, "other": f"features:{_OTHER}"})
        save_stage1(stage1, folder / "stage1.pth")
        part = load_stage1(folder / "stage1.pth").modalities[family.kind]
        features, preprocessing = compare(part, LibraryEncoder(source, family.kind, family.model_class))
        proof = dataclasses.replace(proof, features=features, preprocessing=preprocessing)
        data = write_items(family.kind, folder)
        proof = dataclasses.replace(proof, trained=fit(_config(folder, data)).finished)
        dataset = load_dataset(data, folder / "cache", stage1.kinds)
        bundle = write_bundle(open_run(folder / "runs" / "run"), dataset, folder / "bundle", _OPTIONS)
        promise = bundle.manifest.precisions["fp32"].tolerance.max_abs
        proof = dataclasses.replace(proof, parity=measure_parity(bundle, family.kind), promise=promise)
        if compile_engine:
            proof = dataclasses.replace(proof, engine=compile_rtx(bundle, family.kind))
    except FluxTalkError as error:
        proof = dataclasses.replace(proof, stopped=str(error))
    return dataclasses.replace(proof, seconds=round(time.monotonic() - started, 1))


_OPTIONS = ExportOptions(precisions=("fp32",))


def measure_parity(bundle: Bundle, modality: str) -> float:
    """Measure the largest difference of a bundle's float32 embeddings from eager PyTorch, over every k."""
    verification = verify_bundle(bundle.folder, BackendOptions("ort-cpu"), ["fp32"])
    return max(report.difference.max_abs for report in verification.reports if report.modality == modality)


def compile_rtx(bundle: Bundle, modality: str) -> str:
    """Compile a modality with TensorRT-RTX for compute capability 8.9, and say how that went."""
    arguments = [str(bundle.folder), "--flavor", "tensorrt-rtx", "--compute-capability", "8.9", "--modality", modality]
    result = CliRunner().invoke(trt, arguments)
    return "compiled" if result.exit_code == 0 else result.output.strip().splitlines()[-1]


def compare(part: Stage1Modality, library: LibraryEncoder) -> tuple[float, float]:
    """Compare features and prepared inputs with a library's own, item by item.

    Returns:
        Largest difference of features relative to their largest magnitude, and of what goes into the model.
    """
    encoder = part.build()
    features = preprocessing = 0.0
    for index in range(COMPARED):
        item = _item(part.preprocess, index)
        expected = library.reference(item)
        batch = part.preprocess.collate([part.preprocess.prepare(item)])
        with torch.no_grad():
            tensors = to_tensors(batch)
            given = encoder(*tensors)
            prepared = _as_prepared(part, encoder, tensors)
        real = given.mask_BL[0].numpy()
        if part.preprocess.kind == "audio":
            # Silence behind a sound is known by the mask here; a library computes features of it, too.
            ours, theirs = (
                given.features_BLD[0].numpy()[real],
                expected.features[: len(real)][real[: len(expected.features)]],
            )
            own = expected.prepared[: len(prepared)]
        else:
            ours, theirs, own = given.features_BLD[0].numpy(), expected.features, expected.prepared
        if prepared.shape != own.shape:
            raise AssertionError(f"input of shape {prepared.shape} here and {own.shape} from the library")
        difference = np.abs(prepared.astype(np.float64) - own)
        if encoder.pixel_scale is not None:
            difference /= encoder.pixel_scale[0].numpy()
            if difference.max() > _SAME_LEVEL:
                # Another resampler: the features are compared on one input all the same.
                theirs = library.features_of_pixels(prepared)
        if ours.shape != theirs.shape:
            raise AssertionError(f"features of shape {ours.shape} here and {theirs.shape} from the library")
        features = max(features, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        preprocessing = max(preprocessing, float(difference.max()))
    return features, preprocessing


def _as_prepared(part: Stage1Modality, encoder: Any, tensors: Any) -> Any:
    """Give what goes into the model itself: pixels normalized, ids, samples or mel bins."""
    if isinstance(part.preprocess, ImagePreprocessor):
        pixels = tensors[0].float().permute(0, 3, 1, 2)
        return (pixels * encoder.pixel_scale + encoder.pixel_shift)[0].numpy()
    return tensors[0][0].numpy()


def write_items(kind: str, folder: Path) -> str:
    """Write a table of items of a kind beside features of another modality, and name it."""
    random = np.random.default_rng(0)
    inputs = folder / "items"
    inputs.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", kind, "other"])
        for index, name in enumerate(names(ITEMS)):
            value = name
            if kind == "image":
                value = f"items/{index}.png"
                picture(index).save(folder / value)
            elif kind == "audio":
                value = f"items/{index}.wav"
                soundfile.write(folder / value, sound(index), RATE)
            np.save(inputs / f"{index}.npy", random.standard_normal((3, _OTHER)).astype(np.float32))
            table.writerow([index, value, f"items/{index}.npy"])
    return str(folder / "pairs.csv")


def _item(preprocess: Preprocessor, index: int) -> Any:
    if isinstance(preprocess, AudioPreprocessor):
        return sound(index, preprocess.sample_rate), preprocess.sample_rate
    return picture(index) if preprocess.kind == "image" else names(30)[3 * index]


def _config(folder: Path, data: str) -> TrainConfig:
    return TrainConfig(
        stage1_checkpoint=str(folder / "stage1.pth"),
        output_dir=str(folder / "runs"),
        cache_dir=str(folder / "cache"),
        log_name="run",
        data=data,
        batch_size=16,
        epochs=1,
        dim=16,
        heads=2,
    )
