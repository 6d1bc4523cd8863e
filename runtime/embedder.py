"""From raw inputs to vectors: preprocessing, batches by length, one session per modality. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fluxtalk import tokens as token_algebra
from fluxtalk.bundle import TOKEN_INDEX, Bundle, read_bundle
from fluxtalk.errors import UsageError, check_token_count
from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.batching import batches_by_length
from fluxtalk.runtime.golden import verify_golden
from fluxtalk.runtime.session import Session
from fluxtalk.runtime.session_onnxruntime import PROVIDERS, OnnxRuntimeSession, import_onnxruntime

BACKENDS = ("auto", *PROVIDERS)
OUTPUT_KINDS = ("pooled", "concat", "tokens", "complementary")
_WINDOW = 4096

Floats = NDArray[np.float32]


class Embedder:
    """A loaded bundle. Thread-safe; close it, or use it as a context manager.

    Args:
        bundle: verified.
        sessions: modality to its session.
        reason: why these sessions, for `describe`.
    """

    def __init__(self, bundle: Bundle, sessions: Mapping[str, Session], reason: str) -> None:
        self.bundle = bundle
        self._sessions = dict(sessions)
        self._preprocess: dict[str, Preprocessor] = {m: bundle.preprocess(m) for m in sessions}
        self._reason = reason

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that can be embedded."""
        return tuple(self._sessions)

    @property
    def num_tokens(self) -> int:
        """The register tokens of the bundle, the largest ``k``."""
        return self.bundle.manifest.num_register_tokens

    @property
    def num_overlapping(self) -> int:
        """How many tokens, from the first, are shared between modalities."""
        return self.bundle.manifest.num_overlapping_tokens

    @property
    def dim(self) -> int:
        """The dimension of a token, and of a pooled embedding."""
        return self.bundle.manifest.dim

    def embed(
        self,
        modality: str,
        items: Sequence[Any],
        k: int | None = None,
        output: str = "pooled",
        batch_size: int = 32,
        first: int | None = None,
    ) -> Floats:
        """Embed raw items.

        Args:
            modality: one of `modalities`.
            items: any number; strings, or images as path, bytes, PIL image or uint8 array, or features as array or
                ``.npy`` path, by the modality's preprocessing.
            k: how many register tokens to compute, from the first; None takes all.
            output: ``pooled``, the normalised mean over the overlapping tokens among the first k, (items, dim);
                ``concat``, those tokens side by side, (items, min(k, overlapping) * dim); ``tokens``, the first k
                tokens as they are, (items, k, dim); ``complementary``, what only this modality knows,
                (items, N - overlapping, dim), which takes no k below N.
            batch_size: the largest batch of one session run.
            first: the position of ``items[0]`` in a longer list that the caller embeds in parts; errors count from it.

        Returns:
            float32, in the order of ``items``.

        Raises:
            TokenCountError: ``k`` is not in ``1..num_tokens``.
            UsageError: the modality or output is unknown, ``items`` is a single string, or ``complementary`` was asked
                for with fewer than all tokens, or of a bundle without such tokens.
            InputError: an item cannot be preprocessed; its position is named.
        """
        count = self._check(modality, items, k, output, batch_size)
        parts = [
            self._window(modality, items[start : start + _WINDOW], _position(first, start), count, output, batch_size)
            for start in range(0, len(items), _WINDOW)
        ]
        return np.concatenate(parts) if parts else self._empty(count, output)

    def input_kind(self, modality: str) -> str:
        """What a modality's raw items are: ``text``, ``image`` or ``features``.

        Raises:
            UsageError: the modality is unknown.
        """
        self._require_modality(modality)
        return self._preprocess[modality].kind

    def session(self, modality: str) -> Session:
        """The session of a modality."""
        return self._sessions[modality]

    def prepare(self, modality: str, items: Sequence[Any], first: int | None = None) -> list[NDArray[Any]]:
        """Preprocess raw items, naming the position of one that fails.

        Args:
            first: the position of ``items[0]`` in a longer list; None where ``items`` is the whole list.

        Raises:
            InputError: an item cannot be preprocessed.
        """
        prepare = self._preprocess[modality].prepare
        prepared = []
        for position, item in enumerate(items, start=first or 0):
            try:
                prepared.append(prepare(item))
            except Exception as error:
                if (len(items) > 1 or first is not None) and error.args:
                    error.args = (f"{modality} item {position}: {error.args[0]}",)
                raise
        return prepared

    def describe(self) -> str:
        """What was loaded, on what, and why."""
        sessions = "; ".join(f"{m}: {session.describe()}" for m, session in self._sessions.items())
        manifest = self.bundle.manifest
        return (
            f"{self.bundle.folder}: {self.num_tokens} register tokens ({self.num_overlapping} overlapping) "
            f"of dimension {self.dim}, {manifest.precision}, opset {manifest.opset}; {sessions}; {self._reason}"
        )

    def close(self) -> None:
        """Release every session."""
        for session in self._sessions.values():
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_modality(self, modality: str) -> None:
        if modality not in self._sessions:
            raise UsageError(f"This bundle embeds {', '.join(self._sessions)}; got modality {modality!r}.")

    def _check(self, modality: str, items: Sequence[Any], k: int | None, output: str, batch_size: int) -> int:
        self._require_modality(modality)
        if output not in OUTPUT_KINDS:
            raise UsageError(f"output is one of {', '.join(OUTPUT_KINDS)}; got {output!r}.")
        if isinstance(items, str | bytes):
            raise UsageError("items is a list of raw inputs; put a single one into a list.")
        if batch_size < 1:
            raise UsageError(f"batch_size is at least 1; got {batch_size}.")
        count = check_token_count(k, self.num_tokens, "this bundle")
        if output == "complementary":
            if self.num_overlapping == self.num_tokens:
                raise UsageError("This bundle has no complementary tokens: all of its tokens are overlapping.")
            if count != self.num_tokens:
                raise UsageError(
                    f"complementary tokens come last, so they need all {self.num_tokens} tokens; leave k out."
                )
        return count

    def _window(
        self, modality: str, items: Sequence[Any], first: int | None, k: int, output: str, batch_size: int
    ) -> Floats:
        preprocess, session = self._preprocess[modality], self._sessions[modality]
        prepared = self.prepare(modality, items, first)
        index = np.arange(k, dtype=np.int64)
        result: Floats | None = None
        for rows in batches_by_length([preprocess.length(array) for array in prepared], batch_size):
            batch = preprocess.collate([prepared[row] for row in rows])
            values = self._select(session.run({**batch, TOKEN_INDEX: index}), k, output)
            if result is None:
                result = np.empty((len(items), *values.shape[1:]), dtype=np.float32)
            result[rows] = values
        assert result is not None  # a window has at least one item
        return result

    def _select(self, outputs: Mapping[str, Floats], k: int, output: str) -> Floats:
        if output == "pooled":
            return outputs["embeddings"][:, k - 1]
        tokens = outputs["tokens"]
        if output == "concat":
            return token_algebra.concatenate(tokens, self.num_overlapping)
        return tokens if output == "tokens" else tokens[:, self.num_overlapping :]

    def _empty(self, k: int, output: str) -> Floats:
        shapes: dict[str, tuple[int, ...]] = {
            "pooled": (0, self.dim),
            "concat": (0, min(k, self.num_overlapping) * self.dim),
            "tokens": (0, k, self.dim),
            "complementary": (0, self.num_tokens - self.num_overlapping, self.dim),
        }
        return np.empty(shapes[output], dtype=np.float32)


def _position(first: int | None, start: int) -> int | None:
    return None if first is None and start == 0 else (first or 0) + start


def load(
    bundle: str | Path,
    backend: str = "auto",
    threads: int | None = None,
    modalities: Sequence[str] | None = None,
    verify: bool = False,
) -> Embedder:
    """Open a bundle for serving.

    Args:
        bundle: folder that `fluxtalk-export onnx` wrote; its files are checked against their hashes.
        backend: ``auto``, ``ort-cpu`` or ``ort-cuda``. What is asked for by name is used, or refused; never replaced.
        threads: for one operator on the CPU; None takes the available cores.
        modalities: load these alone; None takes all.
        verify: also replay the golden vectors before returning.

    Raises:
        BundleError: the bundle is missing, foreign or was changed.
        BackendError: the backend is missing.
        UsageError: the backend or a modality is unknown.
        ParityError: with ``verify``, the golden vectors are not reproduced.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend is one of {', '.join(BACKENDS)}; got {backend!r}.")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is at least 1; got {threads}.")
    opened = read_bundle(Path(bundle))
    wanted = list(modalities) if modalities is not None else list(opened.manifest.modalities)
    unknown = [name for name in wanted if name not in opened.manifest.modalities]
    if unknown:
        raise UsageError(f"This bundle embeds {', '.join(opened.manifest.modalities)}; got {', '.join(unknown)}.")
    chosen, reason = _choose(backend)
    embedder = Embedder(opened, {m: OnnxRuntimeSession(opened.graph(m), chosen, threads) for m in wanted}, reason)
    if verify:
        for report in verify_golden(opened, embedder.session, wanted):
            report.require()
    return embedder


def _choose(backend: str) -> tuple[str, str]:
    if backend != "auto":
        return backend, "asked for by name"
    available = import_onnxruntime().get_available_providers()
    if PROVIDERS["ort-cuda"] in available:
        return "ort-cuda", "chosen because this ONNX Runtime has CUDA"
    return "ort-cpu", "chosen because this ONNX Runtime has no CUDA"
