"""`fluxtalk stage1 pack`: encoders of other libraries by name, against what those libraries compute themselves."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from bench.encoders.families import Family
from bench.encoders.items import picture
from bench.encoders.proof import compare
from bench.encoders.references import LibraryEncoder
from fluxtalk.arrays import Floats
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1Modality, load_stage1, save_stage1
from fluxtalk.model.encoders import EncoderSpec, FrozenEncoder, to_tensors
from fluxtalk.model.encoders.base import features_and_mask
from fluxtalk.train.stage1.cli import main
from fluxtalk.train.stage1.create import stage1_from_specification
from fluxtalk.train.stage1.pack import pack_encoders
from fluxtalk.train.stage1.sources.names import parse_source
from fluxtalk.train.stage1.sources.open_source import open_source

Saved = Callable[[str], tuple[Family, str]]
FEATURES = 1e-5
"""Largest difference from the library's features, relative to the largest of them."""
PREPARED = 1e-3
"""Largest difference of what goes into the model, in levels of 255: normalized by one operation fewer than theirs."""


def packed(kind: str, source: str, folder: Path) -> Stage1Modality:
    """Pack one encoder, and read it back from its checkpoint."""
    save_stage1(pack_encoders({kind: source}), folder / "stage1.pth")
    return load_stage1(folder / "stage1.pth").modalities[kind]


def opened(kind: str, source: str) -> Stage1Modality:
    """Open one encoder as packing does, without the trial of its export, which takes seconds and has its own tests."""
    found = open_source(kind, parse_source(source))
    with torch.no_grad():
        item = picture(0) if kind == "image" else "red" if kind == "text" else (np.zeros(16_000, np.float32), 16_000)
        batch = to_tensors(found.preprocess.collate([found.preprocess.prepare(item)]))
        features, _ = features_and_mask(FrozenEncoder(found.encoder, found.preprocess, 0).run(*batch))
    spec = EncoderSpec(found.source, dict(found.options), int(features.shape[-1]))
    return Stage1Modality(spec, found.weights, found.preprocess)


# One of each mechanism; every family is in bench/results/encoders.json, and a test that none is missing there.
@pytest.mark.parametrize(
    "name",
    [
        "DINOv2",
        "SigLIP, image",
        "ConvNeXt",
        "timm Swin",
        "open_clip ViT, image",
        "MiniLM",
        "T5 encoder",
        "SigLIP, text",
        "open_clip ViT, text",
        "wav2vec 2.0",
        "Whisper",
    ],
)
def test_features_and_preprocessing_are_the_librarys_own(saved: Saved, name: str) -> None:
    family, source = saved(name)
    part = opened(family.kind, source)
    features, prepared = compare(part, LibraryEncoder(source, family.kind, family.model_class))
    assert features <= FEATURES
    assert prepared <= PREPARED


def test_a_checkpoint_builds_without_the_place_it_came_from(saved: Saved, tmp_path: Path) -> None:
    _, source = saved("DINOv2")
    folder = tmp_path / "moved"
    shutil.copytree(source.partition(":")[2], folder)
    part = packed("image", f"hf:{folder}", tmp_path)
    shutil.rmtree(folder)
    batch = part.preprocess.collate([part.preprocess.prepare(picture(0))])
    assert part.build()(*to_tensors(batch)).features_BLD.shape == (1, 17, 32)


def test_the_same_model_in_another_folder_is_the_same_encoder(saved: Saved, tmp_path: Path) -> None:
    _, source = saved("ViT")
    folders = [tmp_path / place for place in ("vit", "another name")]
    for folder in folders:
        shutil.copytree(source.partition(":")[2], folder)
    hashes = {opened("image", f"hf:{folder}").content_hash() for folder in folders}
    assert len(hashes) == 1


def _features(source: str, item: object, kind: str = "image") -> Floats:
    part = opened(kind, source)
    with torch.no_grad():
        batch = part.preprocess.collate([part.preprocess.prepare(item)])
        found: Floats = part.build()(*to_tensors(batch)).features_BLD[0].numpy()
    return found


def test_class_and_register_tokens_can_be_dropped(saved: Saved) -> None:
    for name, first in (("ViT", 1), ("DINOv2 with registers", 5), ("DeiT", 2), ("timm ViT", 1)):
        _, source = saved(name)
        kept, dropped = (_features(f"{source}{more}", picture(1)) for more in ("", "?class-tokens=drop"))
        assert len(kept) == len(dropped) + first
        np.testing.assert_array_equal(kept[first:], dropped)


def test_a_hidden_layer_is_the_librarys(saved: Saved) -> None:
    _, source = saved("ViT")
    family, _ = saved("ViT")
    library = LibraryEncoder(source, "image", family.model_class)
    pixels = torch.from_numpy(library.reference(picture(2)).prepared)[None]
    with torch.no_grad():
        expected = library._model(pixels, output_hidden_states=True).hidden_states
    for layer in (0, 1, -1):
        found = _features(f"{source}?layer={layer}", picture(2))
        np.testing.assert_allclose(found, expected[layer][0].numpy(), rtol=0, atol=1e-5)


def test_hidden_layers_of_timm_count_as_those_of_transformers(saved: Saved) -> None:
    _, source = saved("timm ViT")
    last, same = (_features(f"{source}?layer={layer}", picture(2)) for layer in (2, -1))
    np.testing.assert_array_equal(last, same)
    first = _features(f"{source}?layer=1", picture(2))
    assert first.shape == last.shape
    assert np.abs(first - last).max() > 1e-3
    with pytest.raises(UsageError, match="layers 1 to 2"):
        _features(f"{source}?layer=3", picture(2))


def test_the_pooled_vector_can_be_appended(saved: Saved) -> None:
    family, source = saved("CLIP, image")
    plain, more = (_features(f"{source}{query}", picture(0)) for query in ("", "?pooled=append"))
    library = LibraryEncoder(source, "image", family.model_class)
    pixels = torch.from_numpy(library.reference(picture(0)).prepared)[None]
    with torch.no_grad():
        pooled = library._model(pixels).pooler_output[0].numpy()
    np.testing.assert_array_equal(more[:-1], plain)
    np.testing.assert_allclose(more[-1], pooled, rtol=0, atol=1e-5)
    _, source = saved("ConvNeXt")
    with pytest.raises(UsageError, match="no pooled vector"):
        _features(f"{saved('T5 encoder')[1]}?pooled=append", "red", "text")


def test_half_precision_is_kept_and_computed_in_float32(saved: Saved, tmp_path: Path) -> None:
    _, source = saved("MiniLM")
    folder = tmp_path / "half"
    transformers = importlib.import_module("transformers")
    shutil.copytree(source.partition(":")[2], folder)
    transformers.AutoModel.from_pretrained(folder).bfloat16().save_pretrained(folder)
    part = packed("text", f"hf:{folder}", tmp_path)
    assert {value.dtype for value in part.weights.values() if value.is_floating_point()} == {torch.bfloat16}
    encoder = part.build()
    assert {value.dtype for value in encoder.parameters()} == {torch.float32}
    features, _ = compare(part, LibraryEncoder(f"hf:{folder}", "text", "BertModel"))
    assert features <= FEATURES


def test_weights_that_do_not_fit_are_named(saved: Saved, tmp_path: Path) -> None:
    _, source = saved("ViT")
    folder = tmp_path / "short"
    shutil.copytree(source.partition(":")[2], folder)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layer" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        pack_encoders({"image": f"hf:{folder}"})


def test_timm_weights_of_a_file_may_have_a_prefix(saved: Saved, tmp_path: Path) -> None:
    timm = importlib.import_module("timm")
    model = timm.create_model("resnet10t", pretrained=False)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    part = pack_encoders({"image": f"timm:resnet10t@{tmp_path}/w.pth?image-size=64"}).modalities["image"]
    assert part.spec.source == "timm:resnet10t@w.pth"
    assert (part.preprocess.height, part.preprocess.width) == (64, 64)  # type: ignore[attr-defined]
    broken = {k: v for k, v in model.state_dict().items() if "layer3" not in k}
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"missing layer3\.0"):
        pack_encoders({"image": f"timm:resnet10t@{tmp_path}/broken.pth"})


@pytest.mark.parametrize(
    ("encoders", "words"),
    [
        ({"image": "hf:{text}"}, "takes input_ids"),
        ({"text": "hf:{image}"}, "takes pixel_values"),
        ({"photo": "hf:{image}"}, "kind=image"),
        ({"text": "timm:resnet10t"}, "image encoders only"),
        ({"image": "timm:resnet11x"}, "knows no model"),
        ({"text": "st:{text}"}, "modules.json"),
        ({"image": "small-image"}, "specification"),
    ],
)
def test_what_cannot_be_packed_is_said(saved: Saved, encoders: dict[str, str], words: str) -> None:
    folders = {kind: saved(name)[1].partition(":")[2] for kind, name in (("text", "MiniLM"), ("image", "ViT"))}
    with pytest.raises(UsageError, match=words):
        pack_encoders({name: source.format(**folders) for name, source in encoders.items()})


def test_a_name_that_a_hub_does_not_give_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot be opened"):
        pack_encoders({"image": "hf:nobody/nothing"})


@pytest.mark.usefixtures("trial_export")
def test_modalities_of_another_name_say_what_they_take(saved: Saved, tmp_path: Path) -> None:
    part = packed("photo", f"{saved('ViT')[1]}?kind=image", tmp_path)
    assert part.preprocess.kind == "image"


def test_the_command_packs_and_a_specification_takes_the_same_names(saved: Saved, tmp_path: Path) -> None:
    text = saved("MiniLM")[1]
    words = ["pack", "--encoder", "sound=features:7", "--encoder", f"text={text}?max-length=32"]
    result = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "a.pth")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    modalities = {"sound": {"encoder": "features:7"}, "text": {"encoder": text, "options": {"max_length": 32}}}
    (tmp_path / "encoders.json").write_text(json.dumps({"modalities": modalities}))
    arguments = ["create", str(tmp_path / "encoders.json"), "-o", str(tmp_path / "b.pth")]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    assert load_stage1(tmp_path / "a.pth").content_hash() == load_stage1(tmp_path / "b.pth").content_hash()


def test_a_factory_beside_the_specification_is_found(tmp_path: Path) -> None:
    (tmp_path / "beside_encoders.py").write_text(
        "import torch\n"
        "class Map(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.convolution = torch.nn.Conv2d(3, 6, 4, 4)\n"
        "    def forward(self, pixels):\n"
        "        return self.convolution(pixels)\n"
    )
    preprocess = {"kind": "image", "height": 8, "width": 12, "mean": [0.5], "std": [0.5]}
    content = {"modalities": {"image": {"encoder": "module:beside_encoders:Map", "preprocess": preprocess}}}
    (tmp_path / "encoders.json").write_text(json.dumps(content))
    save_stage1(stage1_from_specification(tmp_path / "encoders.json"), tmp_path / "stage1.pth")
    part = load_stage1(tmp_path / "stage1.pth").modalities["image"]
    batch = part.preprocess.collate([part.preprocess.prepare(picture(0))])
    # A map (batch, 6, 2, 3) is a sequence of six features.
    assert part.build()(*to_tensors(batch)).features_BLD.shape == (1, 6, 6)
