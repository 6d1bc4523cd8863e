"""The data set `glyphs` against the fonts themselves, Unicode, and brute force."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fluxtalk.datasets import PairDataset, glyphs
from fluxtalk.errors import DataError

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FILES = [
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
]


def _code(id_: str) -> int:
    return int(id_.removeprefix("U+"), 16)


def _ink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_faces_stand_in_the_fixed_order() -> None:
    assert [face.file for face in glyphs.FACES] == FILES


@pytest.mark.parametrize("face", glyphs.FACES, ids=lambda face: face.file)
def test_a_face_is_what_its_file_says(face: glyphs.Face) -> None:
    family, style = ImageFont.truetype(str(FONTS / face.file), 20).getname()
    assert family is not None
    assert style is not None
    assert family.replace("STIXGeneral", "STIX") == face.family
    assert ("Bold" in style) == face.bold
    assert ("Oblique" in style or "Italic" in style) == face.slanted


def test_split_sizes_and_disjoint_characters(glyph_data: PairDataset) -> None:
    ids = {name: split.ids for name, split in glyph_data.splits.items()}
    assert len(ids["test"]) == 1000
    assert len(ids["validation"]) == 500
    everything = [id_ for part in ids.values() for id_ in part]
    assert len(everything) == len(set(everything))
    # "The rest" is every named character that draws ink in some face: counted from the fonts' own tables.
    named = {
        code for file in FILES for code in FT2Font(str(FONTS / file)).get_charmap() if unicodedata.name(chr(code), None)
    }
    assert {_code(id_) for id_ in everything} <= named
    assert 0.97 * len(named) < len(everything) <= len(named)


def test_every_id_has_images_and_its_name(glyph_data: PairDataset) -> None:
    for split in glyph_data.splits.values():
        assert set(split.items) == set(glyph_data.modalities) == {"image", "text"}
        image, text = split.items["image"], split.items["text"]
        assert set(image.groups.tolist()) == set(range(len(split.ids)))
        assert text.groups.tolist() == list(range(len(split.ids)))
        assert [unicodedata.lookup(value.upper()) for value in text.values] == [chr(_code(id_)) for id_ in split.ids]
        assert len(set(text.values)) == len(text)


def test_the_first_face_of_each_character_is_counted(glyph_data: PairDataset) -> None:
    images = glyph_data.split("test").items["image"]
    faces = images.labels["face"]
    for group in range(len(glyph_data.split("test").ids)):
        rows = np.flatnonzero(images.groups == group)
        assert images.counted[rows].tolist() == [face == min(faces[rows]) for face in faces[rows]]


def test_no_render_is_blank(glyph_data: PairDataset) -> None:
    for split in glyph_data.splits.values():
        pixels = np.asarray(split.items["image"].values)
        assert pixels.shape[1:] == (32, 32)
        assert pixels.dtype == np.uint8
        assert pixels.reshape(len(pixels), -1).max(axis=1).min() > 0


def test_images_are_their_characters_in_the_labeled_face(glyph_data: PairDataset) -> None:
    split = glyph_data.split("test")
    images = split.items["image"]
    fonts = [ImageFont.truetype(str(FONTS / file), 23, layout_engine=ImageFont.Layout.BASIC) for file in FILES]
    checked = set()
    for row in range(0, len(images), 29):
        character = chr(_code(split.ids[images.groups[row]]))
        face = int(images.labels["face"][row])
        canvas = Image.new("L", (160, 160))
        ImageDraw.Draw(canvas).text((80, 80), character, fill=255, font=fonts[face], anchor="ms")
        drawn = _ink(np.asarray(canvas))
        if max(drawn.shape) <= 32:  # larger ones are shrunk to fit
            assert np.array_equal(_ink(images.values[row]), drawn), (character, FILES[face])
            checked.add(face)
    assert checked == set(range(16))


def test_labels_agree_with_the_face(glyph_data: PairDataset) -> None:
    for split in glyph_data.splits.values():
        labels = split.items["image"].labels
        faces = [glyphs.FACES[face] for face in labels["face"]]
        assert [glyphs.FAMILIES[family] for family in labels["family"]] == [face.family for face in faces]
        assert labels["weight"].tolist() == [int(face.bold) for face in faces]
        assert labels["slant"].tolist() == [int(face.slanted) for face in faces]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_seen_is_right_against_brute_force(glyph_data: PairDataset, name: str) -> None:
    trained = np.asarray(glyph_data.split("train").items["image"].values)
    split = glyph_data.split(name)
    images = split.items["image"]
    firsts = np.asarray(images.values)[images.counted]
    chosen = [*np.flatnonzero(split.seen)[:12], *np.flatnonzero(~split.seen)[:12]]
    assert len(chosen) == 24
    for group in chosen:
        assert split.seen[group] == (trained == firsts[group]).all(axis=(1, 2)).any(), split.ids[group]


def test_rendering_is_deterministic(glyph_data: PairDataset) -> None:
    split = glyph_data.split("test")
    images = split.items["image"]
    for row in range(0, len(images), 997):
        file = FONTS / FILES[images.labels["face"][row]]
        character = chr(_code(split.ids[images.groups[row]]))
        for _ in range(2):
            assert np.array_equal(glyphs._Renderer(file).draw(character), images.values[row])


def test_the_split_hardly_moves_when_a_character_is_added(glyph_data: PairDataset) -> None:
    codes = np.array([_code(id_) for split in glyph_data.splits.values() for id_ in split.ids])
    before, after = glyphs.split_characters(codes), glyphs.split_characters(np.append(codes, 0x10FFFD))
    for name in before:
        assert len(set(before[name].tolist()) ^ set(after[name].tolist())) <= 2


def test_the_cache_file_is_reused(glyph_data: PairDataset, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rendered_again() -> glyphs.Glyphs:
        raise AssertionError("rendered again")

    monkeypatch.setattr(glyphs, "_render_all", rendered_again)
    again = glyphs.load(cache_dir)
    assert again.content_hash == glyph_data.content_hash
    assert np.array_equal(again.split("test").items["image"].values, glyph_data.split("test").items["image"].values)


@pytest.mark.parametrize("damage", ["pixel", "header", "truncated"])
@pytest.mark.usefixtures("glyph_data")
def test_a_changed_cache_is_refused_by_name(damage: str, cache_dir: Path, tmp_path: Path) -> None:
    (file,) = cache_dir.glob("glyphs-*.safetensors")
    copy = Path(shutil.copy(file, tmp_path))
    if damage == "truncated":
        with copy.open("rb+") as opened:
            opened.truncate(copy.stat().st_size - 1)
    else:
        with copy.open("rb+") as opened:
            opened.seek(-1000 if damage == "pixel" else 3, 2 if damage == "pixel" else 0)
            byte = opened.read(1)[0]
            opened.seek(-1, 1)
            opened.write(bytes([byte ^ 0x55]))
    with pytest.raises(DataError, match=r"damaged.*remove it") as caught:
        glyphs.load(tmp_path)
    assert str(copy) in str(caught.value)
