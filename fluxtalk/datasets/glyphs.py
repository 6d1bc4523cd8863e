"""`glyphs`: images of Unicode characters in sixteen type faces, and the characters' names.

A paired data set that needs no download, because matplotlib ships the type faces. Image and text share
the *character*; only the image knows the *type face*, so what is shared and what is private is known.
The split is by character: no test or validation character is seen in training, in any face.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fluxtalk.arrays import Integers
from fluxtalk.artifacts.files import atomic_file, hash_bytes, hash_json
from fluxtalk.console import progress
from fluxtalk.datasets.pairs import Items, PairDataset, Split
from fluxtalk.errors import DataError

SIZE = 32
TEST_CHARACTERS = 1000
VALIDATION_CHARACTERS = 500
_VERSION = 1
_FONT_SIZE = 23
_BASELINE = 24


@dataclass(frozen=True)
class Face:
    """One type face and its factors, which only an image shows."""

    file: str
    family: str
    bold: bool
    slanted: bool


FACES = (
    Face("DejaVuSans.ttf", "DejaVu Sans", False, False),
    Face("DejaVuSans-Bold.ttf", "DejaVu Sans", True, False),
    Face("DejaVuSans-Oblique.ttf", "DejaVu Sans", False, True),
    Face("DejaVuSans-BoldOblique.ttf", "DejaVu Sans", True, True),
    Face("DejaVuSansMono.ttf", "DejaVu Sans Mono", False, False),
    Face("DejaVuSansMono-Bold.ttf", "DejaVu Sans Mono", True, False),
    Face("DejaVuSansMono-Oblique.ttf", "DejaVu Sans Mono", False, True),
    Face("DejaVuSansMono-BoldOblique.ttf", "DejaVu Sans Mono", True, True),
    Face("DejaVuSerif.ttf", "DejaVu Serif", False, False),
    Face("DejaVuSerif-Bold.ttf", "DejaVu Serif", True, False),
    Face("DejaVuSerif-Italic.ttf", "DejaVu Serif", False, True),
    Face("DejaVuSerif-BoldItalic.ttf", "DejaVu Serif", True, True),
    Face("STIXGeneral.ttf", "STIX", False, False),
    Face("STIXGeneralBol.ttf", "STIX", True, False),
    Face("STIXGeneralItalic.ttf", "STIX", False, True),
    Face("STIXGeneralBolIta.ttf", "STIX", True, True),
)
"""The faces in their fixed order; a character's *first face* is the first of these that has it."""

FAMILIES = ("DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "STIX")


@dataclass(frozen=True)
class Glyphs:
    """Every rendered glyph, ordered by character and then by face."""

    images: NDArray[np.uint8]
    """(glyphs, 32, 32), white on black."""
    characters: Integers
    """(glyphs,) code points, ascending."""
    faces: Integers
    """(glyphs,) indices into `FACES`."""

    def content_hash(self) -> str:
        """SHA-256 over images, characters and faces."""
        digest = hashlib.sha256()
        for array in (self.images, self.characters, self.faces):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_glyphs(cache_dir: Path) -> Glyphs:
    """Render all glyphs, or read the rendering of an earlier run.

    Args:
        cache_dir: folder of the cache file, whose name holds a hash of the faces' files and of the drawing settings.

    Raises:
        DataError: matplotlib is missing, or the cache file was changed.
    """
    path = cache_dir / f"glyphs-{_rendering_hash()[:16]}.safetensors"
    if path.is_file():
        return _read_cache(path)
    glyphs = _render_all()
    from safetensors.numpy import save_file

    with atomic_file(path) as temporary:
        save_file(
            {"images": glyphs.images, "characters": glyphs.characters, "faces": glyphs.faces},
            temporary,
            metadata={"content_hash": glyphs.content_hash()},
        )
    return glyphs


def character_name(code_point: int) -> str:
    """The text of a character: its Unicode name in lower case."""
    return unicodedata.name(chr(code_point)).lower()


def split_characters(characters: Integers) -> dict[str, Integers]:
    """Divide code points into test (1,000), validation (500) and train (the rest), each ascending.

    The order is by hash of the code point, so that it hardly moves when a later face adds a character.
    """
    unique = np.unique(characters)
    order = sorted(unique.tolist(), key=lambda code: hashlib.sha256(f"fluxtalk glyphs {code}".encode()).digest())
    validation_end = TEST_CHARACTERS + VALIDATION_CHARACTERS
    parts = {
        "train": order[validation_end:],
        "validation": order[TEST_CHARACTERS:validation_end],
        "test": order[:TEST_CHARACTERS],
    }
    return {name: np.array(sorted(part), dtype=np.int64) for name, part in parts.items()}


def load(cache_dir: Path) -> PairDataset:
    """Load the data set `glyphs`: modalities ``image`` (arrays) and ``text`` (names), one id per character."""
    glyphs = load_glyphs(cache_dir)
    parts = split_characters(glyphs.characters)
    train_rows = np.isin(glyphs.characters, parts["train"])
    train_pixels = {image.tobytes() for image in glyphs.images[train_rows]}
    return PairDataset(
        name="glyphs",
        modalities=("image", "text"),
        splits={name: _split(name, glyphs, part, train_pixels) for name, part in parts.items()},
        content_hash=hash_json({"glyphs": glyphs.content_hash(), "version": _VERSION}),
    )


def _split(name: str, glyphs: Glyphs, characters: Integers, train_pixels: set[bytes]) -> Split:
    rows = np.flatnonzero(np.isin(glyphs.characters, characters))
    groups = np.searchsorted(characters, glyphs.characters[rows])
    first_face = np.diff(groups, prepend=-1) != 0
    faces = glyphs.faces[rows]
    images = glyphs.images[rows]
    # Every character has its own name, so only the picture can be in the training split too.
    seen = np.array([image.tobytes() in train_pixels for image in images[first_face]], dtype=bool)
    everything = np.ones(len(characters), dtype=bool)
    return Split(
        name=name,
        ids=tuple(f"U+{code:04X}" for code in characters.tolist()),
        items={
            "image": Items(
                values=images,  # type: ignore[arg-type]  # an array is the cheapest sequence of images
                groups=groups,
                counted=first_face,
                labels={
                    "face": faces,
                    "family": np.array([FAMILIES.index(FACES[face].family) for face in faces]),
                    "weight": np.array([int(FACES[face].bold) for face in faces]),
                    "slant": np.array([int(FACES[face].slanted) for face in faces]),
                },
            ),
            "text": Items(
                values=[character_name(code) for code in characters.tolist()],
                groups=np.arange(len(characters)),
                counted=everything,
            ),
        },
        seen=seen if name != "train" else everything,
    )


def _font_folder() -> Path:
    try:
        import matplotlib
    except ImportError:
        raise DataError(
            "The data set glyphs needs matplotlib for its type faces: pip install 'fluxtalk[demo]'."
        ) from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _rendering_hash() -> str:
    from PIL import features

    folder = _font_folder()
    missing = [face.file for face in FACES if not (folder / face.file).is_file()]
    if missing:
        raise DataError(
            f"The installed matplotlib lacks the type faces {', '.join(missing)}; install matplotlib 3.9 or newer."
        )
    return hash_json(
        {
            "version": _VERSION,
            "faces": {face.file: hash_bytes((folder / face.file).read_bytes()) for face in FACES},
            "geometry": [SIZE, _FONT_SIZE, _BASELINE],
            "freetype": features.version("freetype2"),
            "unicode": unicodedata.unidata_version,
        }
    )


def _read_cache(path: Path) -> Glyphs:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            expected = file.metadata()["content_hash"]
            glyphs = Glyphs(*(file.get_tensor(name) for name in ("images", "characters", "faces")))
    except (SafetensorError, KeyError, TypeError):
        glyphs, expected = None, ""
    if glyphs is None or glyphs.content_hash() != expected:
        raise DataError(
            f"The glyph cache {path} is damaged: its content does not match its hash; remove it to render it again."
        )
    return glyphs


def _render_all() -> Glyphs:
    from matplotlib.ft2font import FT2Font

    folder = _font_folder()
    wanted: list[tuple[int, int]] = []
    for index, face in enumerate(FACES):
        codes = FT2Font(str(folder / face.file)).get_charmap()
        wanted += [(code, index) for code in codes if unicodedata.name(chr(code), None)]
    wanted.sort()
    renderers = [_Renderer(folder / face.file) for face in FACES]
    images = np.zeros((len(wanted), SIZE, SIZE), dtype=np.uint8)
    for row, (code, index) in enumerate(progress(wanted, "rendering glyphs", unit="glyph")):
        images[row] = renderers[index].draw(chr(code))
    inked = images.any(axis=(1, 2))
    codes, faces = np.array(wanted, dtype=np.int64).T
    return Glyphs(images[inked], codes[inked], faces[inked])


class _Renderer:
    """Renderer of one face, which draws characters on their baseline, and smaller if they would not fit."""

    _CANVAS = 4 * SIZE

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fonts: dict[int, ImageFont.FreeTypeFont] = {}

    def draw(self, character: str) -> NDArray[np.uint8]:
        size = _FONT_SIZE
        while True:
            pixels = self._on_canvas(character, size)
            box = _ink(pixels)
            if box is None:
                return np.zeros((SIZE, SIZE), dtype=np.uint8)
            top, bottom, left, right = box
            excess = max(bottom - top, right - left) / SIZE
            if excess <= 1:
                break
            size = min(size - 1, int(size / excess))
        # Centered across; on the baseline unless that would cut the glyph off.
        y = min(max(self._CANVAS // 2 - _BASELINE, bottom - SIZE), top)
        x = (left + right - SIZE) // 2
        return pixels[y : y + SIZE, x : x + SIZE]

    def _on_canvas(self, character: str, size: int) -> NDArray[np.uint8]:
        if size not in self._fonts:
            # Layout by raqm depends on what is installed beside Pillow; BASIC is always the same.
            self._fonts[size] = ImageFont.truetype(str(self._path), size, layout_engine=ImageFont.Layout.BASIC)
        canvas = Image.new("L", (self._CANVAS, self._CANVAS))
        middle = self._CANVAS // 2
        ImageDraw.Draw(canvas).text((middle, middle), character, fill=255, font=self._fonts[size], anchor="ms")
        return np.asarray(canvas)


def _ink(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    rows = np.flatnonzero(pixels.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(pixels.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
