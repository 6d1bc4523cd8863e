"""The stage 1 checkpoint: round trips, every kind of file that is refused, and users' own encoders."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from fluxtalk.artifacts.files import Identity
from fluxtalk.errors import CheckpointError, FluxTalkError, UsageError
from fluxtalk.model.checkpoints.stage1 import SCHEMA_VERSION, Stage1, Stage1Modality, load_stage1, save_stage1
from fluxtalk.model.encoders import EncoderSpec, SmallImageEncoder, build_encoder
from fluxtalk.preprocess import FeaturesPreprocessor, ImagePreprocessor
from fluxtalk.train.stage1.cli import main
from fluxtalk.train.stage1.create import stage1_from_specification

IMAGE_OPTIONS = {"size": 8, "dim": 8, "depth": 1, "heads": 2, "stem": 4}


def _tiny(data: str | None = "/data/pairs.csv") -> Stage1:
    """An image encoder of a few thousand numbers, and given features."""
    torch.manual_seed(0)
    return Stage1(
        {
            "image": Stage1Modality(
                EncoderSpec("small-image", IMAGE_OPTIONS, 8),
                SmallImageEncoder(**IMAGE_OPTIONS).state_dict(),
                ImagePreprocessor(8, 8, 1, mean=(0.2,), std=(0.4,)),
            ),
            "sound": Stage1Modality(EncoderSpec("features:4", {}, 4), {}, FeaturesPreprocessor(4)),
        },
        data=data,
        figures={"seconds": 1.5, "command": "fluxtalk stage1"},
        identity=Identity("mine", "other", git_revision="abc"),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A written checkpoint."""
    save_stage1(_tiny(), tmp_path / "stage1.pth")
    return tmp_path / "stage1.pth"


def test_round_trip(path: Path) -> None:
    """Everything comes back, and nothing else lies beside the file."""
    written, read = _tiny(), load_stage1(path)
    assert (read.data, read.figures, read.identity) == (written.data, written.figures, written.identity)
    assert list(read.modalities) == ["image", "sound"]
    for name, part in written.modalities.items():
        assert read.modalities[name].spec == part.spec
        assert read.modalities[name].preprocess.to_parts() == part.preprocess.to_parts()
        assert read.modalities[name].weights.keys() == part.weights.keys()
        for key, value in part.weights.items():
            assert torch.equal(read.modalities[name].weights[key], value)
    assert read.content_hash() == written.content_hash()
    assert [p.name for p in path.parent.iterdir()] == ["stage1.pth"]


def test_round_trip_of_the_real_encoders(stage1: Stage1, tmp_path: Path) -> None:
    """A text encoder brings its tokenizer along."""
    save_stage1(stage1, tmp_path / "again.pth")
    again = load_stage1(tmp_path / "again.pth")
    assert again.content_hash() == stage1.content_hash()
    text = "black chess queen"
    for name, item in (("text", text), ("image", np.full((32, 32), 77, np.uint8))):
        preprocess = again.modalities[name].preprocess
        assert np.array_equal(preprocess.prepare(item), stage1.modalities[name].preprocess.prepare(item))


def test_built_encoders_give_the_same_features_and_are_frozen(path: Path) -> None:
    part = load_stage1(path).modalities["image"]
    encoder = part.build()
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    original = SmallImageEncoder(**IMAGE_OPTIONS)
    original.load_state_dict(dict(_tiny().modalities["image"].weights))
    pixels = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8)
    expected = original(((pixels.permute(0, 3, 1, 2).float() / 255) - 0.2) / 0.4)
    features, mask = encoder(pixels)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert mask.all()
    assert mask.shape == (3, 1)


def test_half_precision_weights_load_and_compute_in_single(tmp_path: Path) -> None:
    whole = _tiny().modalities["image"]
    halved = Stage1Modality(whole.spec, {k: v.half() for k, v in whole.weights.items()}, whole.preprocess)
    save_stage1(Stage1({"image": halved}), tmp_path / "half.pth")
    read = load_stage1(tmp_path / "half.pth")
    assert all(v.dtype == torch.float16 for v in read.modalities["image"].weights.values())
    encoder = read.modalities["image"].build()
    pixels = torch.randint(0, 256, (2, 8, 8, 1), dtype=torch.uint8)
    assert all(p.dtype == torch.float32 for p in encoder.parameters())
    torch.testing.assert_close(encoder(pixels)[0], whole.build()(pixels)[0], rtol=0, atol=2e-2)


def test_the_hash_follows_what_changes_embeddings_only() -> None:
    """Weights, options and preprocessing change it; the name of the data and the figures do not."""
    base = _tiny()
    image = base.modalities["image"]
    assert _tiny(data="other.csv").content_hash() == base.content_hash()
    moved = {**image.weights, "norm.bias": image.weights["norm.bias"] + 1e-3}
    others = [
        Stage1Modality(image.spec, moved, image.preprocess),
        Stage1Modality(EncoderSpec("small-image", {**IMAGE_OPTIONS, "heads": 4}, 8), image.weights, image.preprocess),
        Stage1Modality(image.spec, image.weights, ImagePreprocessor(8, 8, 1, mean=(0.3,), std=(0.4,))),
        Stage1Modality(image.spec, {k: v.double() for k, v in image.weights.items()}, image.preprocess),
    ]
    hashes = {image.content_hash(), *(other.content_hash() for other in others)}
    assert len(hashes) == 5


def test_a_modality_that_cannot_be_a_file_name_is_refused(tmp_path: Path) -> None:
    part = _tiny().modalities["image"]
    with pytest.raises(UsageError, match=r"got '\.\./image'"):
        save_stage1(Stage1({"../image": part}), tmp_path / "s.pth")
    assert list(tmp_path.iterdir()) == []


class _Evil:
    """A stand-in for a stranger's pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_a_pickled_object_is_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 7."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pth"
    torch.save({"format": "fluxtalk.stage1", "modalities": _Evil()}, file)
    with pytest.raises(CheckpointError, match=r"evil\.pth holds more than tensors and plain types"):
        load_stage1(file)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pth"]


def test_missing_truncated_and_foreign_files_are_refused(path: Path, tmp_path: Path) -> None:
    """Each sentence names the file."""
    whole = path.read_bytes()
    cases = {
        "missing.pth": (None, "does not exist"),
        "empty.pth": (b"", "empty.pth"),
        "truncated.pth": (whole[: len(whole) // 2], "cannot be read|no PyTorch file"),
        "text.pth": (b"not a checkpoint", "text.pth"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_stage1(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    for name, value in (("weights.pth", {"a": torch.zeros(2)}), ("tensor.pth", torch.zeros(2)), ("list.pth", [1])):
        torch.save(value, tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"{name} is not a FluxTalk stage 1 checkpoint"):
            load_stage1(tmp_path / name)
    torch.save({"a": torch.zeros(2)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"legacy\.pth"):
        load_stage1(tmp_path / "legacy.pth")


def _rewritten(path: Path, **changes: Any) -> Path:
    """The checkpoint with top-level entries replaced, as valid a file as before."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


def test_another_schema_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"stage1\.pth has stage 1 schema 99; .* reads {SCHEMA_VERSION}"):
        load_stage1(_rewritten(path, schema_version=99))


def test_changed_content_is_refused(path: Path) -> None:
    """Noticed by its hash, even if the archive was written anew."""
    content = torch.load(path, weights_only=True)
    content["modalities"]["image"]["weights"]["norm.bias"][0] += 1
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"stage1\.pth was changed since it was written"):
        load_stage1(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"modalities": {"image": {}}},
        {"modalities": [1]},
        {
            "modalities": {
                "image": {"encoder": {"source": "x"}, "preprocess": {}, "preprocess_files": {}, "weights": {}}
            }
        },
        {"identity": {"nobody": 1}},
    ],
)
def test_malformed_content_is_refused(path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"stage1\.pth is a malformed stage 1 checkpoint"):
        load_stage1(_rewritten(path, **changes))


def test_no_flipped_bit_goes_unnoticed(path: Path) -> None:
    """Whatever bit of the file is flipped: it is refused by name, or what is read is what was written.

    (An archive has bytes that mean nothing, such as dates.)
    """
    whole, written = path.read_bytes(), _tiny()
    refused = unnamed = 0
    for position in range(0, len(whole), 23):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        try:
            read = load_stage1(path)
        except CheckpointError as error:
            refused += str(path) in str(error)
            unnamed += str(path) not in str(error)
        else:
            assert read.content_hash() == written.content_hash()
            assert (read.data, read.figures, read.identity) == (written.data, written.figures, written.identity)
    assert refused > 200
    assert unnamed == 0


def test_weights_that_do_not_fit_are_refused_when_the_encoder_is_built() -> None:
    part = _tiny().modalities["image"]
    wider = Stage1Modality(EncoderSpec("small-image", {**IMAGE_OPTIONS, "dim": 16}, 16), part.weights, part.preprocess)
    with pytest.raises(CheckpointError, match=r"do not fit the encoder small-image: .*size mismatch"):
        wider.build()


# ---------------------------------------------------------------------------- users' encoders

FACTORY = """
import torch

class Patches(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, width, 4, stride=4)
        self.norm = torch.nn.BatchNorm2d(width)

    def forward(self, pixels):
        return self.norm(self.convolution(pixels)).flatten(2).transpose(1, 2)

class Named(Patches):
    dim = 6

class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(2000, 5)

    def forward(self, ids, mask):
        return self.table(ids), mask

def patches(width=6):
    torch.manual_seed(width)
    return Patches(width)

def named():
    return Named(6)

def flat():
    return torch.nn.Flatten()

def crash():
    return torch.nn.Linear(3, 3)

def number():
    return 7
"""
IMAGE = {"kind": "image", "height": 8, "width": 12}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's module on the path."""
    (tmp_path / "stage1_user_code.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("stage1_user_code", None)


def _specification(folder: Path, modalities: object, **more: object) -> Path:
    path = folder / "encoders.json"
    path.write_text(json.dumps({"modalities": modalities, **more}))
    return path


@pytest.mark.parametrize(("factory", "dim"), [("patches", 6), ("named", 6)])
def test_an_encoder_from_a_factory(folder: Path, factory: str, dim: int) -> None:
    """Encoders with and without a `dim` attribute; the checkpoint builds the same encoder, buffers included."""
    image = {"encoder": f"module:stage1_user_code:{factory}", "preprocess": IMAGE}
    made = stage1_from_specification(_specification(folder, {"image": image, "sound": {"encoder": "features:4"}}))
    save_stage1(made, folder / "stage1.pth")
    read = load_stage1(folder / "stage1.pth")
    assert {m: part.spec.dim for m, part in read.modalities.items()} == {"image": dim, "sound": 4}
    assert "norm.running_mean" in read.modalities["image"].weights
    encoder = read.modalities["image"].build()
    features, mask = encoder(torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8))
    assert features.shape == (2, 6, dim)
    assert mask.shape == (2, 6)


def test_options_reach_the_factory_and_weights_the_encoder(folder: Path) -> None:
    """A state_dict, as .pth or .safetensors, is loaded over what the factory made."""
    source = build_encoder("module:stage1_user_code:patches", {"width": 10})
    weights = {name: torch.full_like(value, 3) for name, value in source.state_dict().items()}
    torch.save(weights, folder / "weights.pth")
    save_file(weights, folder / "weights.safetensors")
    for file in ("weights.pth", "weights.safetensors"):
        image = {
            "encoder": "module:stage1_user_code:patches",
            "options": {"width": 10},
            "weights": file,
            "preprocess": IMAGE,
        }
        part = stage1_from_specification(_specification(folder, {"image": image})).modalities["image"]
        assert part.spec == EncoderSpec("module:stage1_user_code:patches", {"width": 10}, 10)
        assert all((value == 3).all() for value in part.build().encoder.state_dict().values())


def test_the_probe_leaves_batch_statistics_alone(folder: Path) -> None:
    """Trying the encoder on one input must not train it."""
    image = {"encoder": "module:stage1_user_code:patches", "preprocess": IMAGE}
    part = stage1_from_specification(_specification(folder, {"image": image})).modalities["image"]
    assert (part.weights["norm.running_mean"] == 0).all()
    assert part.weights["norm.num_batches_tracked"] == 0


def test_a_text_encoder_from_a_factory_takes_ids_and_mask(folder: Path, stage1: Stage1) -> None:
    _, files = stage1.modalities["text"].preprocess.to_parts()
    (folder / "tokenizer.json").write_text(files["tokenizer.json"])
    text = {
        "encoder": "module:stage1_user_code:Words",
        "preprocess": {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 9},
    }
    part = stage1_from_specification(_specification(folder, {"text": text})).modalities["text"]
    assert part.spec.dim == 5
    batch = part.preprocess.collate([part.preprocess.prepare(t) for t in ("black chess queen", "letter")])
    features, mask = part.build()(*(torch.from_numpy(array) for array in batch.values()))
    assert features.shape[:2] == mask.shape
    assert mask.sum(dim=1).tolist() == batch["mask"].sum(axis=1).tolist()


def test_given_features_pass_unchanged_and_padding_is_zero() -> None:
    part = _tiny().modalities["sound"]
    features, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    features[~mask] = torch.nan
    passed = part.build()(features, mask)
    assert torch.equal(passed.features_BLD[mask], features[mask])
    assert not passed.features_BLD[~mask].any()
    assert torch.equal(passed.mask_BL, mask)


REFUSED = {
    "source": ({"image": {"encoder": "resnet", "preprocess": IMAGE}}, "small-image, .*got 'resnet'"),
    "no-dim": ({"sound": {"encoder": "features:x"}}, "features:DIM .*got 'features:x'"),
    "no-number": ({"sound": {"encoder": "features:0"}}, "features:DIM .*got 'features:0'"),
    "no-string": ({"sound": {"encoder": 4}}, r"encoder \(a string\)"),
    "no-options": ({"sound": {"encoder": "features:4", "options": [1]}}, r"options \(an object\)"),
    "no-factory": ({"image": {"encoder": "module:stage1_user_code", "preprocess": IMAGE}}, "module:PACKAGE"),
    "import": ({"image": {"encoder": "module:not_there:make", "preprocess": IMAGE}}, "not_there.*cannot be imported"),
    "name": ({"image": {"encoder": "module:stage1_user_code:nope", "preprocess": IMAGE}}, "cannot be imported"),
    "no-module": ({"image": {"encoder": "module:stage1_user_code:number", "preprocess": IMAGE}}, "returned int"),
    "options": (
        {"image": {"encoder": "small-image", "options": {"color": 1}, "preprocess": IMAGE}},
        "small-image does not take these options.*color",
    ),
    "factory-options": (
        {"image": {"encoder": "module:stage1_user_code:patches", "options": {"color": 1}, "preprocess": IMAGE}},
        "patches.* does not take these options.*color",
    ),
    "shape": ({"image": {"encoder": "module:stage1_user_code:flat", "preprocess": IMAGE}}, r"\(batch, length, 288\)"),
    "crash": ({"image": {"encoder": "module:stage1_user_code:crash", "preprocess": IMAGE}}, "fails on one image input"),
    "no-preprocess": ({"image": {"encoder": "module:stage1_user_code:patches"}}, "image needs a preprocess"),
    "surplus-preprocess": ({"sound": {"encoder": "features:4", "preprocess": IMAGE}}, "takes no preprocess"),
    "tokenizer": (
        {
            "text": {
                "encoder": "small-text",
                "options": {"vocabulary": 9},
                "preprocess": {"kind": "text", "tokenizer": "no.json", "max_length": 4},
            }
        },
        r"tokenizer .*no\.json of text does not exist",
    ),
    "unknown-key": ({"image": {"encoder": "features:4", "wieghts": "w.pth"}}, "wieghts"),
    "no-object": ({"image": "features:4"}, "The modality image .*got 'features:4'"),
    "nothing": ({}, "at least one"),
    "name-of-modality": ({"Image": {"encoder": "features:4"}}, "lower-case"),
    "missing-weights": (
        {"image": {"encoder": "module:stage1_user_code:patches", "preprocess": IMAGE, "weights": "no.pth"}},
        r"no\.pth do not exist",
    ),
    "wrong-weights": (
        {"image": {"encoder": "module:stage1_user_code:patches", "preprocess": IMAGE, "weights": "wrong.pth"}},
        r"wrong\.pth do not fit",
    ),
    "evil-weights": (
        {"image": {"encoder": "module:stage1_user_code:patches", "preprocess": IMAGE, "weights": "evil.pth"}},
        r"evil\.pth hold more than tensors",
    ),
}


@pytest.mark.parametrize(("modalities", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_an_encoder_is_one_sentence(folder: Path, modalities: object, words: str) -> None:
    """Through `fluxtalk stage1 create`: exit code, sentence, and no file."""
    torch.save({"other": torch.zeros(1)}, folder / "wrong.pth")
    torch.save({"evil": _Evil()}, folder / "evil.pth")
    path = _specification(folder, modalities)
    with pytest.raises(FluxTalkError, match=words) as caught:
        save_stage1(stage1_from_specification(path), folder / "direct.pth")
    done = CliRunner().invoke(main, ["create", str(path), "-o", str(folder / "out" / "stage1.pth")])
    assert done.exit_code == caught.value.exit_code
    assert done.stderr == f"error: {caught.value}\n"
    assert not (folder / "direct.pth").exists()
    assert not list((folder / "out").glob("*"))


def test_stage1_create(folder: Path) -> None:
    """The command itself, and what it says."""
    image = {"encoder": "module:stage1_user_code:patches", "preprocess": IMAGE}
    path = _specification(folder, {"image": image, "sound": {"encoder": "features:4"}}, data="pairs.csv")
    done = CliRunner().invoke(main, ["create", str(path), "-o", str(folder / "stage1.pth")])
    assert done.exit_code == 0, done.output
    assert "features of dimension 6" in done.stdout
    assert load_stage1(folder / "stage1.pth").data == str(folder / "pairs.csv")
    wrong = CliRunner().invoke(main, ["create", str(path), "-o", str(folder / "stage1.bin")])
    assert wrong.exit_code == 2
    assert ".pth" in wrong.stderr


def test_specification_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json does not exist"):
        stage1_from_specification(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match=r"broken\.json is not valid JSON"):
        stage1_from_specification(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UsageError, match=r"list\.json has the keys modalities"):
        stage1_from_specification(tmp_path / "list.json")
    with pytest.raises(UsageError, match="has the keys modalities"):
        stage1_from_specification(_specification(tmp_path, {"a": {"encoder": "features:4"}}, modality={}))
