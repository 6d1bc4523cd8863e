"""sentence-transformers: a folder that `SentenceTransformer` opens, and with it whatever takes such a model.

::

    from fluxtalk.integrations.sentence_transformers import save_sentence_transformer

    save_sentence_transformer("bundle", "model", k=2)
    model = SentenceTransformer("model", trust_remote_code=True)    # because the module's class is FluxTalk's
    model.encode_query(["black chess queen"])
    model.encode([Image.open("queen.png")], k=1)

The folder holds a copy of the bundle. PyTorch is there because sentence-transformers needs it; the bundle is run by the
backend that `fluxtalk.load` chooses, or by ``SentenceTransformer(..., model_kwargs={"backend": "cpu", "threads": 2})``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.artifacts.files import atomic_folder, write_json
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.errors import BackendError, InputError, UsageError
from fluxtalk.integrations.modalities import modality_of_kind
from fluxtalk.runtime import Embedder, load
from fluxtalk.runtime.hub import FOLDER, copy_bundle

try:
    import torch
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modules import InputModule
except ImportError:
    raise BackendError(
        "sentence-transformers 6 or newer is not installed; pip install 'fluxtalk[sentence-transformers]'."
    ) from None

KINDS = ("text", "image")
"""Kinds of items that pass through sentence-transformers; other modalities of a bundle are left out."""
_BUNDLE, _SETTINGS = FOLDER, "fluxtalk.json"


class BundleModule(InputModule):
    """The one module of such a model: raw items in, embeddings out.

    Args:
        embedder: a loaded bundle.
        settings: ``k`` (register tokens computed unless a call says otherwise; None is all) and ``modalities`` (kind to
            the modality that takes such items).
        options: arguments with which `fluxtalk.load` opened the bundle.
    """

    forward_kwargs: ClassVar[set[str]] = {"k"}

    def __init__(self, embedder: Embedder, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.embedder = embedder
        self.settings = dict(settings)
        self.options = dict(options)

    @property
    def modalities(self) -> list[str]:
        """Kinds of items that the model embeds, in the words of sentence-transformers."""
        return list(self.settings["modalities"])

    def get_embedding_dimension(self) -> int:
        """Numbers of an embedding, unless a call names another k."""
        return self.embedder.bundle.manifest.layout.select(self.settings["k"]).values_per_item

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_options: Any) -> dict[str, Any]:
        """Keep the items as they are, with the prompt that sentence-transformers chose for them.

        Args:
            inputs: items of one kind: strings, or pictures as PIL image, uint8 array or path, each bare or as
                ``{"image": picture}``.
            prompt: words before each text; None is no prompt.

        Raises:
            InputError: an item is of two kinds or of none that the bundle embeds, or the items are of different kinds.
        """
        kinds = {self._kind(item) for item in inputs}
        if len(kinds) > 1:
            raise InputError(f"A batch holds items of one kind; got {' and '.join(sorted(kinds))}: encode each alone.")
        items = [next(iter(item.values())) if isinstance(item, dict) else item for item in inputs]
        return {"items": items, "kind": kinds.pop() if kinds else self.modalities[0], "prompt": prompt or ""}

    def forward(self, features: dict[str, Any], k: int | None = None) -> dict[str, Any]:
        """Embed what `preprocess` kept.

        Args:
            features: what `preprocess` gave.
            k: register tokens to compute, from the first; None takes the folder's setting.

        Returns:
            ``features`` with ``sentence_embedding``, float32 (items, embedding dimension).

        Raises:
            TokenCountError: ``k`` is not in ``1..num_tokens``.
            InputError: an item cannot be embedded; its position in its batch is named.
        """
        vectors = self.embedder.embed(
            self.settings["modalities"][features["kind"]],
            features["items"],
            k=self.settings["k"] if k is None else k,
            # As sentence-transformers resolved it: a prompt of the bundle's own would be a second one.
            prompt=features["prompt"],
            batch_size=max(1, len(features["items"])),
        )
        return {**features, "sentence_embedding": torch.from_numpy(vectors)}

    def save(self, output_path: str, *_args: Any, **_options: Any) -> None:
        """Copy the bundle and the settings into a folder, as `SentenceTransformer.save_pretrained` asks for it."""
        _copy(self.embedder.bundle, Path(output_path), self.settings)

    @classmethod
    def load(cls, model_name_or_path: str, *, model_kwargs: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Open the bundle of a folder, or of a repository that sentence-transformers downloads.

        Args:
            model_kwargs: arguments of `fluxtalk.load`.

        Raises:
            FluxTalkError: as for `fluxtalk.load`; UsageError if the folder does not hold a bundle.
        """
        where = {name: options.get(name) for name in ("token", "cache_folder", "revision")}
        where["local_files_only"] = bool(options.get("local_files_only"))
        settings = cls.load_file_path(model_name_or_path, _SETTINGS, **where)
        bundle = cls.load_dir_path(model_name_or_path, _BUNDLE, **where)
        if settings is None or bundle is None:
            raise UsageError(
                f"{model_name_or_path} was not written by save_sentence_transformer: it has no {_SETTINGS}."
            )
        return cls._open(bundle, read_object(Path(settings)), dict(model_kwargs or {}))

    @classmethod
    def _open(cls, bundle: str | Path, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        wanted = list(settings["modalities"].values())
        return cls(load(bundle, modalities=wanted, **options), settings, options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the bundle again in another process, for `start_multi_process_pool`."""
        return type(self)._open, (self.embedder.bundle.folder, self.settings, self.options)

    def _kind(self, item: Any) -> str:
        if isinstance(item, Path):
            kind: Any = "image"
        else:
            try:
                kind = infer_modality(item, self.modalities)
            except ValueError as error:
                raise InputError(str(error)) from None
        if kind not in self.modalities or isinstance(item, list | tuple):
            what = " and ".join(kind) if isinstance(kind, tuple) else kind
            raise InputError(f"This model embeds items of the kind {' or '.join(self.modalities)}; got {what}.")
        return str(kind)


def save_sentence_transformer(
    bundle: str | Path,
    folder: str | Path,
    k: int | None = None,
    modalities: Sequence[str] | None = None,
) -> Path:
    """Write a folder that `SentenceTransformer` opens; it appears whole or not at all.

    The bundle's prompts become those of the model, with its default; the similarity is the cosine.

    Args:
        bundle: folder of a bundle; it is copied, without engines, which fit one machine.
        folder: folder to write; it must not exist, or be empty.
        k: register tokens that are computed unless a call names another number; None is all.
        modalities: modalities to offer, at most one for texts and one for images; None takes the only one of each.

    Returns:
        ``folder``.

    Raises:
        BundleError: the bundle is missing, foreign or was changed.
        TokenCountError: ``k`` is not in ``1..num_tokens``.
        UsageError: the folder is not empty; or no modality takes texts or images, or several do and none is named.
    """
    opened = read_bundle(Path(bundle))
    opened.manifest.layout.select(k)
    chosen = _by_kind(opened, modalities)
    text: Any = opened.preprocess(chosen["text"]) if "text" in chosen else None
    path = Path(folder)
    with atomic_folder(path, UsageError) as writing:
        _copy(opened, writing, {"k": k, "modalities": chosen})
        kind = f"{BundleModule.__module__}.{BundleModule.__name__}"
        write_json(writing / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
        model = {
            "model_type": "SentenceTransformer",
            "prompts": dict(text.prompts) if text is not None else {},
            "default_prompt_name": text.default_prompt_name if text is not None else None,
            "similarity_fn_name": "cosine",
        }
        write_json(writing / "config_sentence_transformers.json", model)
    return path


def _by_kind(bundle: Bundle, modalities: Sequence[str] | None) -> dict[str, str]:
    """Choose the modality of each kind."""
    kinds = {name: str(entry.preprocess.get("kind")) for name, entry in bundle.manifest.modalities.items()}
    unknown = [name for name in modalities or () if kinds.get(name) not in KINDS]
    if unknown:
        raise UsageError(f"Modalities of texts or images are needed, of {', '.join(kinds)}; got {', '.join(unknown)}.")
    offered = {name: kind for name, kind in kinds.items() if modalities is None or name in modalities}
    chosen = {kind: modality_of_kind(offered, kind) for kind in KINDS if kind in offered.values()}
    if not chosen:
        known = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UsageError(f"sentence-transformers passes on texts and images; this bundle has {known}.")
    return chosen


def _copy(bundle: Bundle, folder: Path, settings: Mapping[str, Any]) -> None:
    copy_bundle(bundle, folder / _BUNDLE)
    write_json(folder / _SETTINGS, dict(settings))
