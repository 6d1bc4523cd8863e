"""The work of items: estimated before anything is done for them, and the throughput that turns it into seconds.

Two things are done for an item. It is *prepared* (a text is tokenized, an image decoded), and a graph is *run* on it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxtalk.preprocess import AudioPreprocessor, ImagePreprocessor, Preprocessor, TextPreprocessor
from fluxtalk.runtime.server.media.pixels import estimate_pixels

RUN_UNITS = {"text": 256, "features": 256, "audio": 160_000, "image": 224 * 224}
"""Kind to the length (or pixels) of an item of ordinary size, whose weight in a batch is 1."""
_CHARACTERS_PER_TOKEN_READ = 64
_ITEM_PIXELS, _ITEM_CHARACTERS, _ITEM_BYTES = 1 << 16, 64, 1 << 14
"""Units of preparing that an item costs beside its size."""
_PRIOR_PREPARE_S = {"image": 2e-8}
"""Kind to seconds of a unit of preparing until some were measured (50 megapixels in a second)."""
_MOST_PRIORS = 4
"""Times that prior which a unit may be measured to take."""
_FIRST_TOKENS_PER_CHARACTER = 0.3
_KEPT = 0.95
"""Decay per measurement: the last 20 or so count, so a machine that got slower is noticed after as many."""
_ENOUGH = 4
"""Measurements of preparing before their rate is used: the first ones meet cold caches."""


@dataclass(frozen=True)
class Work:
    """Work of items; adds up."""

    prepare: float = 0.0
    """Pixels of images, characters of texts, bytes of anything else, and a little for each item."""
    run: float = 0.0
    """Items of ordinary size (`RUN_UNITS`) that it is as long as."""
    rows: float = 0.0
    """Items."""

    def __add__(self, other: Work) -> Work:
        return Work(self.prepare + other.prepare, self.run + other.run, self.rows + other.rows)


def run_unit(preprocess: Preprocessor) -> float:
    """Length of an item of ordinary size; a spectrogram has a position for many samples."""
    unit = RUN_UNITS.get(preprocess.kind, 1)
    return unit / preprocess.hop_length if isinstance(preprocess, AudioPreprocessor) else unit


class _Rate:
    """Seconds of a unit of work: the total of both, recent work counting more."""

    def __init__(self, prior_s: float = 0.0, enough: int = 1) -> None:
        self._seconds = self._units = 0.0
        self.prior_s = prior_s
        """Seconds of a unit before any was measured."""
        self._enough, self._count = enough, 0

    def add(self, units: float, seconds: float) -> None:
        self._seconds = _KEPT * self._seconds + seconds
        self._units = _KEPT * self._units + units
        self._count += 1

    @property
    def seconds_per_unit(self) -> float:
        """Seconds; the prior until enough was measured."""
        return self._seconds / self._units if self._count >= self._enough and self._units else self.prior_s


class _Batches:
    """Seconds of batches: so many for each, and so many for what is in it, times the slowdown measured lately.

    The two are measured before anybody else is served. From small batches alone, which are most of what an idle server
    runs, nothing could be told of large ones.
    """

    def __init__(self) -> None:
        self._batch_s = self._unit_s = 0.0
        self._slowdown = _Rate(1.0)

    def calibrate(self, small: tuple[float, float], large: tuple[float, float]) -> None:
        """Take units and seconds of a small and of a large batch."""
        (few, short_s), (many, long_s) = small, large
        self._unit_s = max(0.0, long_s - short_s) / (many - few) if many > few else 0.0
        self._unit_s = max(self._unit_s, 0.1 * long_s / many)
        self._batch_s = max(0.0, short_s - self._unit_s * few)

    def add(self, units: float, seconds: float) -> None:
        if not self._unit_s:
            self._unit_s = seconds / units
        self._slowdown.add(self._batch_s + self._unit_s * units, seconds)

    def seconds(self, batches: float, units: float) -> float:
        """Estimate the seconds of so many batches with so many units in all."""
        return self._slowdown.seconds_per_unit * (self._batch_s * batches + self._unit_s * units)


class Throughput:
    """Measured work per second of one modality, and estimates of what items will take. Thread-safe.

    Args:
        preprocess: preprocessing of the modality.
        max_weight: items of ordinary size in a batch.
    """

    def __init__(self, preprocess: Preprocessor, max_weight: int = 1) -> None:
        self._preprocess = preprocess
        self._max_weight = max_weight
        self._lock = threading.Lock()
        self._run = _Batches()
        self._prepare = _Rate(_PRIOR_PREPARE_S.get(preprocess.kind, 0.0), _ENOUGH)
        self._tokens_per_character = _FIRST_TOKENS_PER_CHARACTER
        self._preparing = 0
        self._since = 0.0

    def estimate(self, value: Any) -> Work:
        """Estimate the work of a raw item."""
        preprocess = self._preprocess
        if isinstance(preprocess, ImagePreprocessor):
            return Work(_ITEM_PIXELS + estimate_pixels(value), self._weight(preprocess.height * preprocess.width), 1)
        size = len(value) if hasattr(value, "__len__") else 1
        if isinstance(preprocess, TextPreprocessor):
            tokens = size if isinstance(value, list) else 2 + self._tokens_per_character * size
            length = preprocess.max_length if preprocess.fixed_length else min(preprocess.max_length, tokens)
            read = min(size, _CHARACTERS_PER_TOKEN_READ * preprocess.max_length)
            return Work(_ITEM_CHARACTERS + read, self._weight(length), 1)
        if isinstance(preprocess, AudioPreprocessor):
            length = min(preprocess.longest, size / 2 / preprocess.hop_length)
            return Work(_ITEM_BYTES + size, self._weight(length), 1)
        return Work(_ITEM_BYTES + size, self._weight(size if isinstance(value, list) else 1), 1)

    def of_lengths(self, lengths: Sequence[int]) -> Work:
        """Count the work of running prepared items."""
        if isinstance(self._preprocess, ImagePreprocessor):
            pixels = self._preprocess.height * self._preprocess.width
            return Work(0, self._weight(pixels) * len(lengths), len(lengths))
        return Work(0, sum(map(self._weight, lengths)), len(lengths))

    def calibrate(self, small: tuple[Sequence[int], float], large: tuple[Sequence[int], float]) -> None:
        """Take the lengths in a small and in a large batch, and the seconds of each, when nothing else is done."""
        with self._lock:
            self._run.calibrate(*((self.of_lengths(lengths).run, seconds) for lengths, seconds in (small, large)))

    def learn_tokens(self, characters: int, tokens: int) -> None:
        """Compare the length of texts with the tokens that were made of them."""
        if characters:
            seen = min(2.0, tokens / characters)
            self._tokens_per_character += 0.1 * (seen - self._tokens_per_character)

    def ran(self, lengths: Sequence[int], seconds: float) -> None:
        """Record a batch."""
        with self._lock:
            self._run.add(self.of_lengths(lengths).run, seconds)

    def begin_preparing(self, now: float) -> None:
        """Note that items are being prepared from now on."""
        with self._lock:
            if not self._preparing:
                self._since = now
            self._preparing += 1

    def end_preparing(self, units: float, now: float) -> None:
        """Note that items are prepared, or given up: of these, ``units`` is 0."""
        with self._lock:
            self._preparing -= 1
            if units:
                # One file that takes long for its size does not make everybody's expensive.
                most = _MOST_PRIORS * units * self._prepare.prior_s or float("inf")
                self._prepare.add(units, min(now - self._since, most))
            self._since = now

    def seconds(self, work: Work) -> float:
        """Estimate the seconds that work takes if nothing else is done; 0 before anything was measured."""
        with self._lock:
            batches = max(work.rows, work.run) / self._max_weight
            return self._run.seconds(batches, work.run) + work.prepare * self._prepare.seconds_per_unit

    def describe(self) -> dict[str, float]:
        """Describe the throughput that is counted on: tokens, images, vectors or samples, and pixels, per second."""
        kind, found = self._preprocess.kind, {}
        image = isinstance(self._preprocess, ImagePreprocessor)
        run_s = self.seconds(Work(run=self.of_lengths([1]).run if image else 1.0, rows=1.0))
        if run_s:
            names = {"text": "tokens_per_second", "features": "vectors_per_second", "image": "images_per_second"}
            count = 1.0 if image else run_unit(self._preprocess)
            found[names.get(kind, "positions_per_second")] = count / run_s
        with self._lock:
            prepare_s = self._prepare.seconds_per_unit
        if prepare_s and image:
            found["pixels_per_second"] = 1 / prepare_s
        return {name: float(f"{value:.3g}") for name, value in found.items()}

    def _weight(self, length: float) -> float:
        return length / run_unit(self._preprocess)
