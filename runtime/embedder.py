"""`Embedder`: raw inputs in, vectors out, through preprocessing, batches by length and one session per modality."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fluxtalk.arrays import Array, Floats
from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.errors import BackendError, InputError, UsageError
from fluxtalk.preprocess import Preprocessor, Prompting
from fluxtalk.preprocess.prompts import DOCUMENT, QUERY
from fluxtalk.runtime.arguments import check_integer, check_items, check_modalities
from fluxtalk.runtime.backends.choose import BackendChoice
from fluxtalk.runtime.backends.open_sessions import open_sessions
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.batching import batches_by_length
from fluxtalk.runtime.hub import find_bundle, push_to_hub, save_pretrained
from fluxtalk.runtime.item_kinds import guess_modality
from fluxtalk.runtime.vectors import Vectors, quantize
from fluxtalk.runtime.verify import verify_sessions
from fluxtalk.tokens import ATTENTION, POOLED, Selection, similarity

_WINDOW = 4096
"""Items that are preprocessed and sorted by length together."""


class Embedder:
    """A loaded bundle. Thread-safe; close it, or use it as a context manager.

    Args:
        bundle: opened by `read_bundle`.
        sessions: modality to its session.
        reason: reason for these sessions, shown by `describe`.
        precision: precision of the sessions; None is the bundle's first.
    """

    def __init__(
        self, bundle: Bundle, sessions: Mapping[str, Session], reason: str, precision: str | None = None
    ) -> None:
        self.bundle = bundle
        self.precision = bundle.precision(precision)
        self._sessions = dict(sessions)
        self._preprocess: dict[str, Preprocessor] = {m: bundle.preprocess(m) for m in sessions}
        self.reason = reason
        """Reason for the sessions' backends, for people."""
        self._closed = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that can be embedded."""
        return tuple(self._sessions)

    @property
    def num_tokens(self) -> int:
        """Register tokens of the bundle: the largest ``k``."""
        return self.bundle.manifest.num_register_tokens

    @property
    def num_overlapping(self) -> int:
        """Tokens, from the first, that are shared between modalities."""
        return self.bundle.manifest.num_overlapping_tokens

    @property
    def dim(self) -> int:
        """Dimension of a token, and of a pooled embedding that is a mean of tokens."""
        return self.bundle.manifest.dim

    @property
    def embedding_dim(self) -> int:
        """Dimension of the embedding that `embed` gives without options: ``pooled``, at the largest k."""
        return self.bundle.manifest.layout.select().values_per_item

    def embed(
        self,
        modality: str,
        items: Sequence[Any],
        k: int | None = None,
        output: str = POOLED,
        batch_size: int = 32,
        first: int | None = None,
        dtype: str = "float32",
        role: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        prompt: str | None = None,
    ) -> Vectors:
        """Embed raw items.

        Args:
            modality: one of `modalities`.
            items: any number; strings, or images as path, bytes, PIL image or uint8 array, or sound as path, bytes or
                (array, rate), or features as array or ``.npy`` path, by the modality's preprocessing.
            k: register tokens to compute, from the first; None takes all.
            output: ``pooled``, ``concat``, ``tokens`` or ``complementary``; `fluxtalk.tokens.TokenLayout.select` says
                what each is and which shape it has.
            batch_size: most items of one session run.
            first: position of ``items[0]`` in a longer list that the caller embeds in parts; errors count from it.
            dtype: ``float32``, ``float16``, ``int8`` or ``binary``: the format to convert the float32 vectors to
                (`fluxtalk.runtime.vectors`). Binary is uint8, with an eighth of the last dimension.
            role: ``query`` or ``document``: put the bundle's prompt for such texts before each, if it has one. None
                takes the default prompt, if there is one. A role changes nothing for other modalities.
            prompt_name: name of the prompt to put before each text, in place of a role.
            dimensions: numbers of a vector, one of the sizes that were trained (`TokenLayout.dimensions`); of tokens
                side by side it may choose k. None cuts nothing.
            prompt: words to put before each text, in place of a role or a name; the empty string puts nothing there,
                not even the default prompt. It changes nothing for other modalities.

        Returns:
            vectors in the order of ``items``.

        Raises:
            TokenCountError: ``k`` is not in ``1..num_tokens``.
            UsageError: the modality, output, dtype, role or prompt is unknown; ``items`` is not a sequence;
                ``batch_size`` is not an integer from 1; ``complementary`` is asked for with fewer than all tokens, or
                of a bundle that has none; or vectors of ``dimensions`` were not trained.
            InputError: an item cannot be preprocessed; its position is named.
        """
        self._check(modality, items, batch_size)
        preprocess = Prompting(role, prompt_name, prompt).apply(self._preprocess[modality])
        selection = self.bundle.manifest.layout.select(k, output, dimensions)
        parts = [
            quantize(
                self._window(
                    modality,
                    _prepared(modality, preprocess, items[start : start + _WINDOW], _position(first, start)),
                    selection,
                    batch_size,
                ),
                dtype,
            )
            for start in range(0, len(items), _WINDOW)
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else quantize(selection.empty(), dtype)

    def encode(self, items: Any, modality: str | None = None, **options: Any) -> Vectors:
        """Embed items of one modality, or a single item, as libraries that expect an ``encode`` call it.

        Args:
            items: a list of raw items, or one of them.
            modality: modality of the items; None takes the one that the first item fits: a string is a text, a path
                what its suffix says, a PIL image or array of uint8 an image, a pair of array and rate a sound.
            options: arguments of `embed`.

        Returns:
            vectors in the order of ``items``, without the first dimension if it was one item.

        Raises:
            FluxTalkError: as for `embed`; UsageError if the modality has to be named.
        """
        one = isinstance(items, str | bytes | os.PathLike | tuple) or not hasattr(items, "__getitem__")
        listed = [items] if one else items
        name = modality
        if name is None:
            kinds = {m: preprocess.kind for m, preprocess in self._preprocess.items()}
            # Of no items at all, any modality gives the same.
            name = guess_modality(listed[0], kinds) if len(listed) else next(iter(kinds))
        vectors = self.embed(name, listed, **options)
        return vectors[0] if one else vectors

    def encode_query(self, items: Any, modality: str | None = None, **options: Any) -> Vectors:
        """Embed queries: `encode` with the role ``query``."""
        return self.encode(items, modality, role=QUERY, **options)

    def encode_document(self, items: Any, modality: str | None = None, **options: Any) -> Vectors:
        """Embed what queries are to find: `encode` with the role ``document``."""
        return self.encode(items, modality, role=DOCUMENT, **options)

    @staticmethod
    def similarity(a: Floats, b: Floats) -> Floats:
        """Compare embeddings: cosines (A, B) of vectors (A, dim) and (B, dim), or MaxSim of ``tokens``.

        Args:
            a: queries; one vector, (dim,), is a list of one.
            b: what they are compared with.

        Raises:
            UsageError: the shapes do not fit.
        """
        return similarity(a, b)

    def attention(self, modality: str, items: Sequence[Any], k: int | None = None) -> list[Floats]:
        """Compute the attention of each register over an item's frozen features: the last block's, or its region.

        Args:
            k: register tokens to compute, from the first; None takes all.

        Returns:
            float32 (k, length) for each item, with rows of sum 1; length is the number of its frozen features.

        Raises:
            UsageError: the bundle was exported without attention; or as for `embed`.
            TokenCountError, InputError: as for `embed`.
        """
        self._check(modality, items)
        layout = self.bundle.manifest.layout
        if not layout.attention:
            raise UsageError(
                f"The bundle {self.bundle.folder} was exported without attention; "
                "export the run again with --attention."
            )
        selection = layout.select(k, ATTENTION)
        # One at a time: in a batch, the attention would cover padding too.
        return [self._run(modality, [prepared], selection)[0] for prepared in self.prepare(modality, items)]

    def input_kind(self, modality: str) -> str:
        """Kind of a modality's raw items: ``text``, ``image``, ``audio`` or ``features``.

        Raises:
            UsageError: the modality is unknown.
        """
        self._require_modality(modality)
        return self._preprocess[modality].kind

    def session(self, modality: str) -> Session:
        """Session of a modality."""
        return self._sessions[modality]

    def prepare(self, modality: str, items: Sequence[Any], first: int | None = None) -> list[Array]:
        """Preprocess raw items, naming the position of one that fails.

        Args:
            first: position of ``items[0]`` in a longer list; None if ``items`` is the whole list.

        Raises:
            InputError: an item cannot be preprocessed.
        """
        return _prepared(modality, self._preprocess[modality], items, first)

    def find_unusable(self, modality: str, items: Sequence[Any], role: str | None = None) -> dict[int, str]:
        """Find the items that cannot be preprocessed: position to what is wrong.

        Raises:
            UsageError: as for `embed`.
        """
        self._check(modality, items)
        preprocess = Prompting(role, None).apply(self._preprocess[modality])
        found = {}
        for position, item in enumerate(items):
            try:
                preprocess.prepare(item)
            except InputError as error:
                found[position] = str(error)
        return found

    def describe(self) -> str:
        """Name the bundle, its head, its sessions and the reason for them, for people."""
        sessions = "; ".join(f"{m}: {session.describe()}" for m, session in self._sessions.items())
        manifest = self.bundle.manifest
        return (
            f"{self.bundle.folder}: {self.num_tokens} register tokens ({self.num_overlapping} overlapping) "
            f"of dimension {self.dim}, {self.precision}, opset {manifest.opset}; {sessions}; {self.reason}"
        )

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> Path:
        """Write a folder for a model hub, which `load` opens again: `fluxtalk.runtime.hub.save_pretrained`."""
        return save_pretrained(self.bundle, folder, license)

    def push_to_hub(
        self, repository: str, license: str | None = None, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload that folder to the Hugging Face hub: `fluxtalk.runtime.hub.push_to_hub`."""
        return push_to_hub(self.bundle, repository, license, private, token)

    def close(self) -> None:
        """Release every session, also if one fails to; closing again does nothing."""
        self._closed = True
        with ExitStack() as closing:
            for session in self._sessions.values():
                closing.callback(session.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_modality(self, modality: str) -> None:
        if self._closed:
            raise BackendError("This embedder was closed; load the bundle again.")
        if not isinstance(modality, str) or modality not in self._sessions:
            raise UsageError(f"This bundle embeds {', '.join(self._sessions)}; got modality {modality!r}.")

    def _check(self, modality: str, items: Sequence[Any], batch_size: int = 1) -> None:
        self._require_modality(modality)
        check_items(items)
        check_integer("batch_size", batch_size, 1)

    def _window(self, modality: str, prepared: Sequence[Array], selection: Selection, batch_size: int) -> Floats:
        if len(prepared) == 1:
            return self._run(modality, prepared, selection)
        length = self._preprocess[modality].length
        result = np.empty((len(prepared), *selection.shape), dtype=np.float32)
        for rows in batches_by_length([length(array) for array in prepared], batch_size):
            result[rows] = self._run(modality, [prepared[row] for row in rows], selection)
        return result

    def _run(self, modality: str, prepared: Sequence[Array], selection: Selection) -> Floats:
        """Run one batch, computing no more tokens and outputs than the selection needs."""
        inputs, wanted = self._preprocess[modality].collate(prepared), selection.graph_output
        return selection.cut(self._sessions[modality].run(inputs, selection.k, (wanted,))[wanted])


def _prepared(modality: str, preprocess: Preprocessor, items: Sequence[Any], first: int | None) -> list[Array]:
    prepare = preprocess.prepare
    prepared = []
    for position, item in enumerate(items, start=first or 0):
        try:
            prepared.append(prepare(item))
        except Exception as error:
            if (len(items) > 1 or first is not None) and error.args:
                error.args = (f"{modality} item {position}: {error.args[0]}",)
            raise
    return prepared


def _position(first: int | None, start: int) -> int | None:
    return None if first is None and start == 0 else (first or 0) + start


def load(
    bundle: str | Path,
    backend: str = "auto",
    threads: int | None = None,
    modalities: Sequence[str] | None = None,
    verify: bool = False,
    precision: str | None = None,
    spinning: bool = True,
    allow_host_code: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Embedder:
    """Open a bundle for serving.

    Args:
        bundle: folder that `fluxtalk-export onnx` wrote, or one with a folder ``bundle`` in it (of ``fluxtalk align``
            or `Embedder.save_pretrained`), or a repository of the Hugging Face hub, ``hf:owner/name``; files are
            checked against their hashes.
        modalities: modalities to load; None takes all.
        verify: replay the golden vectors before returning.
        backend, threads, precision, spinning, allow_host_code: fields of
            `fluxtalk.runtime.backends.options.BackendOptions`, where they are explained.
        revision: branch, tag or commit of a repository; None is its main branch.
        local_files_only: True to take a repository from the hub's cache alone.

    Raises:
        BundleError: the bundle is missing, foreign or was changed; or a repository cannot be had.
        BackendError: the backend is missing, or does not run the bundle in that precision.
        ArtifactError: an engine was changed.
        UsageError: the backend, a modality or the precision is unknown, or ``threads`` is out of range.
        ParityError: with ``verify``, the golden vectors are not reproduced.
    """
    return open_embedder(
        find_bundle(bundle, revision, local_files_only),
        BackendOptions(backend, precision, threads, spinning, allow_host_code),
        modalities,
        verify,
    )


def open_embedder(
    folder: str | Path,
    options: BackendOptions,
    modalities: Sequence[str] | None = None,
    verify: bool = False,
    choice: BackendChoice | None = None,
) -> Embedder:
    """Open a bundle as `load` does, with the backend's options as one value.

    Args:
        choice: a choice that another process made, to be opened as it is; None chooses here.

    Raises:
        FluxTalkError: as for `load`.
    """
    opened = read_bundle(Path(folder), modalities=modalities, precision=options.precision)
    wanted = check_modalities(modalities, opened.manifest.modalities)
    taken, sessions = open_sessions(opened, wanted, options, choice)
    with ExitStack() as opening:
        for session in sessions.values():
            opening.callback(session.close)
        embedder = Embedder(opened, sessions, taken.reason, taken.precision)
        if verify:
            for report in verify_sessions(opened, embedder.session, wanted, taken.precision):
                report.require()
        opening.pop_all()
    return embedder
