"""One list of image formats: a file of any other is refused wherever it comes from, whatever it is called."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fluxtalk.errors import InputError
from fluxtalk.preprocess import FILE_SUFFIXES, ImagePreprocessor
from fluxtalk.preprocess.image_files import IMAGE_FORMATS, open_image_bytes
from fluxtalk.runtime.server.execution.decoding import decode
from fluxtalk.runtime.server.media.thumbnail import thumbnail_of
from tests.conftest import Made
from tests.runtime.test_serving import one_sentence, run

KNOWN = f"{', '.join(IMAGE_FORMATS[:-1])} or TIFF"


def _encoded(format_: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(file, format_)
    return file.getvalue()


@pytest.mark.parametrize("format_", ["EPS", "PPM", "ICO", "TGA", "JPEG2000", "PCX"])
def test_a_file_of_another_format_is_refused_by_the_library_and_the_server(tmp_path: Path, format_: str) -> None:
    data = _encoded(format_)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    preprocess = ImagePreprocessor(8, 8)
    for item, name in ((path, "photo.png"), (data, f"in these {len(data)} bytes")):
        with pytest.raises(InputError, match=rf"The image .*{name} cannot be read .*complete {KNOWN} file\."):
            preprocess.prepare(item)
    assert decode(preprocess, data) == data, "the server decodes it elsewhere, with the same list"
    with pytest.raises(InputError, match=f"{len(data)} bytes cannot be read .*complete {KNOWN} file"):
        thumbnail_of(data, 16)


def test_postscript_is_not_given_to_ghostscript(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = tmp_path / "called"
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    assert shutil.which("gs") == str(programs / "gs")
    (tmp_path / "photo.png").write_bytes(_encoded("EPS"))
    done = run("embed", made.bundle.folder, "image", tmp_path / "photo.png", "-o", tmp_path / "v.npy")
    one_sentence(done, 1, "photo.png", KNOWN)
    assert not called.exists()


@pytest.mark.parametrize("format_", IMAGE_FORMATS)
def test_every_listed_format_is_read_and_found_by_its_suffix(tmp_path: Path, format_: str) -> None:
    data = _encoded(format_)
    assert ImagePreprocessor(8, 8).prepare(data).shape == (8, 8, 3)
    assert open_image_bytes(data).format == format_
    assert {s for s, name in Image.registered_extensions().items() if name == format_} & {*FILE_SUFFIXES["image"]}


def test_avif_is_read_where_pillow_has_it() -> None:
    assert "AVIF" in IMAGE_FORMATS
    assert ".avif" in FILE_SUFFIXES["image"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
def test_a_tiff_of_any_colors_is_read(mode: str, channels: int) -> None:
    file = io.BytesIO()
    Image.new(mode, (12, 10), 200 if mode in ("1", "L", "P", "I;16") else None).save(file, "TIFF")
    assert ImagePreprocessor(8, 8, channels=channels).prepare(file.getvalue()).shape == (8, 8, channels)


def test_cielab_is_read_as_it_looks() -> None:
    color = Image.new("RGB", (8, 8), (200, 40, 90))
    lab = ImageCms.profileToProfile(
        color, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    file = io.BytesIO()
    lab.save(file, "TIFF")
    found = ImagePreprocessor(8, 8).prepare(file.getvalue())[0, 0].astype(int)
    assert np.abs(found - (200, 40, 90)).max() <= 3
