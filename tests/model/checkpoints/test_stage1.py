"""The stage 1 checkpoint: round trips, and every kind of file that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fluxtalk.artifacts.files import Identity
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.checkpoints.stage1 import SCHEMA_VERSION, Stage1, Stage1Modality, load_stage1, save_stage1
from fluxtalk.model.encoders import EncoderSpec, SmallImageEncoder
from fluxtalk.preprocess import FeaturesPreprocessor, ImagePreprocessor
from tests.model.checkpoints.unsafe_pickle import UnsafePickle

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


def test_a_pickled_object_is_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 7."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pth"
    torch.save({"format": "fluxtalk.stage1", "modalities": UnsafePickle()}, file)
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


def test_given_features_pass_unchanged_and_padding_is_zero() -> None:
    part = _tiny().modalities["sound"]
    features, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    features[~mask] = torch.nan
    passed = part.build()(features, mask)
    assert torch.equal(passed.features_BLD[mask], features[mask])
    assert not passed.features_BLD[~mask].any()
    assert torch.equal(passed.mask_BL, mask)
