"""`fluxtalk stage1 create`: users' own encoders, and what cannot be one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from fluxtalk.errors import FluxTalkError, UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1, save_stage1
from fluxtalk.model.encoders import EncoderSpec, build_encoder
from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.train.stage1.cli import main
from fluxtalk.train.stage1.create import stage1_from_specification
from tests.model.checkpoints.unsafe_pickle import UnsafePickle

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


IMAGE = {"kind": "image", "height": 8, "width": 12, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


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
    """With and without a `dim` attribute; what is saved builds the same encoder, buffers included."""
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


@pytest.mark.parametrize(
    ("settings", "background"),
    [({}, [255, 255, 255]), ({"background": "black"}, [0, 0, 0]), ({"background": [1, 2, 3]}, [1, 2, 3])],
    ids=str,
)
def test_transparency_has_a_white_background_unless_told_otherwise(
    folder: Path, settings: dict[str, object], background: list[int]
) -> None:
    image = {"encoder": "module:stage1_user_code:patches", "preprocess": {**IMAGE, **settings}}
    save_stage1(stage1_from_specification(_specification(folder, {"image": image})), folder / "stage1.pth")
    parts, _ = load_stage1(folder / "stage1.pth").modalities["image"].preprocess.to_parts()
    assert parts["background"] == background


def test_transparency_can_still_be_dropped(folder: Path) -> None:
    image = {"encoder": "module:stage1_user_code:patches", "preprocess": {**IMAGE, "background": None}}
    made = stage1_from_specification(_specification(folder, {"image": image})).modalities["image"].preprocess
    assert "background" not in made.to_parts()[0]


def test_small_encoders_have_a_mean_of_their_own(folder: Path) -> None:
    image = {"encoder": "small-image", "preprocess": {"kind": "image", "height": 32, "width": 32, "channels": 1}}
    made = stage1_from_specification(_specification(folder, {"image": image})).modalities["image"].preprocess
    assert isinstance(made, ImagePreprocessor)
    assert made.mean == (0.5,)


@pytest.mark.usefixtures("trial_export")
def test_the_probe_leaves_batch_statistics_alone(folder: Path) -> None:
    """Trying the encoder on one input must not train it."""
    image = {"encoder": "module:stage1_user_code:patches", "preprocess": IMAGE}
    part = stage1_from_specification(_specification(folder, {"image": image})).modalities["image"]
    assert (part.weights["norm.running_mean"] == 0).all()
    assert part.weights["norm.num_batches_tracked"] == 0


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "."])
def test_a_text_encoder_from_a_factory_takes_ids_and_mask(folder: Path, stage1: Stage1, tokenizer: str) -> None:
    _, files = stage1.modalities["text"].preprocess.to_parts()
    (folder / "tokenizer.json").write_text(files["tokenizer.json"])
    text = {
        "encoder": "module:stage1_user_code:Words",
        "preprocess": {"kind": "text", "tokenizer": tokenizer, "max_length": 9},
    }
    part = stage1_from_specification(_specification(folder, {"text": text})).modalities["text"]
    assert part.spec.dim == 5
    batch = part.preprocess.collate([part.preprocess.prepare(t) for t in ("black chess queen", "letter")])
    features, mask = part.build()(*(torch.from_numpy(array) for array in batch.values()))
    assert features.shape[:2] == mask.shape
    assert mask.sum(dim=1).tolist() == batch["mask"].sum(axis=1).tolist()


REFUSED = {
    "source": ({"image": {"encoder": "resnet", "preprocess": IMAGE}}, "small-image, .*got 'resnet'"),
    "no-dim": ({"sound": {"encoder": "features:x"}}, "features:DIM.*got 'features:x'"),
    "no-number": ({"sound": {"encoder": "features:0"}}, "features:DIM.*got 'features:0'"),
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
    "no-mean": (
        {
            "image": {
                "encoder": "module:stage1_user_code:patches",
                "preprocess": {"kind": "image", "height": 8, "width": 12, "std": 0.5},
            }
        },
        "of image lacks mean, .*CLIP.*preprocessor_config.json.*pretrained_cfg",
    ),
    "no-mean-no-std": (
        {
            "image": {
                "encoder": "module:stage1_user_code:patches",
                "preprocess": {"kind": "image", "height": 8, "width": 12},
            }
        },
        "of image lacks mean and std",
    ),
    "text-as-preprocess": (
        {"image": {"encoder": "module:stage1_user_code:patches", "preprocess": "clip"}},
        "preprocess of image is an object.*got 'clip'",
    ),
    "color": (
        {"image": {"encoder": "module:stage1_user_code:patches", "preprocess": {**IMAGE, "background": "whit"}}},
        "background of images is a color.*got 'whit'",
    ),
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
    torch.save({"evil": UnsafePickle()}, folder / "evil.pth")
    path = _specification(folder, modalities)
    with pytest.raises(FluxTalkError, match=words) as caught:
        save_stage1(stage1_from_specification(path), folder / "direct.pth")
    done = CliRunner().invoke(main, ["create", str(path), "-o", str(folder / "out" / "stage1.pth")])
    assert done.exit_code == caught.value.exit_code
    assert done.stderr == f"error: {caught.value}\n"
    assert not (folder / "direct.pth").exists()
    assert not list((folder / "out").glob("*"))


@pytest.mark.usefixtures("trial_export")
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


def test_a_tokenizers_folder_is_taken_and_a_missing_length_is_looked_up(folder: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "words"
    tokenizer.mkdir()
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "green": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tokenizer / "tokenizer.json"))
    preprocess: dict[str, object] = {"kind": "text", "tokenizer": "words", "max_length": 7}
    text = {"encoder": "module:stage1_user_code:Words", "preprocess": preprocess}
    part = stage1_from_specification(_specification(folder, {"text": text})).modalities["text"]
    assert part.preprocess.to_parts()[0]["max_length"] == 7
    del preprocess["max_length"]
    with pytest.raises(UsageError, match=r"lacks max_length.*tokenizer_config\.json"):
        stage1_from_specification(_specification(folder, {"text": text}))
    (tokenizer / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    with pytest.raises(UsageError, match="says model_max_length 77"):
        stage1_from_specification(_specification(folder, {"text": text}))
