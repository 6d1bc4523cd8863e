"""Bundles by name: a local folder, or a repository of the Hugging Face hub and its cache; and the way there.

A repository has ``README.md`` (the model card) and ``bundle/``. Reading it from the cache is tested; nothing that
reaches the hub itself (a download, `push_to_hub`) was ever executed by our tests, which have no network.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.bundle import ENGINES, MANIFEST, Bundle, read_bundle
from fluxtalk.artifacts.files import atomic_folder, write_atomically
from fluxtalk.errors import BundleError, UsageError
from fluxtalk.runtime import model_card

PREFIX = "hf:"
"""Beginning of a name that means a repository of the hub: ``hf:owner/name``."""
FOLDER, CARD = "bundle", "README.md"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def find_bundle(name: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Find the folder of a bundle.

    Args:
        name: the folder; or one that has it as ``bundle``, as `save_pretrained` and ``fluxtalk align`` write it; or
            ``hf:owner/name``, a repository that is taken from the hub's cache, into which it is downloaded.
        revision: branch, tag or commit of the repository.
        local_files_only: True to take the cache as it is, and reach for no network.

    Raises:
        UsageError: huggingface_hub is not installed, the name is not one of a repository, or a folder was given a
            revision.
        BundleError: the repository cannot be had, or holds no bundle.
    """
    repository = str(name).removeprefix(PREFIX) if str(name).startswith(PREFIX) else None
    if repository is None:
        if revision is not None:
            raise UsageError(f"A folder has no revision, but a repository has (hf:owner/name); got {name}.")
        return _within(Path(name))
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"A repository of the hub is named hf:owner/name; got {name}.")
    hub = _hub()
    try:
        found = hub.snapshot_download(
            repository,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=[CARD, f"{FOLDER}/*"],
        )
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "the hub's cache" if local_files_only else "the hub or its cache"
        raise BundleError(f"{name} cannot be had from {where} ({reason}); download it, or name a folder.") from None
    folder = Path(found)
    if not (folder / FOLDER / MANIFEST).is_file():
        raise BundleError(f"{name} holds no bundle: there is no {FOLDER}/{MANIFEST} in it.")
    return folder / FOLDER


def save_pretrained(bundle: Bundle, folder: str | Path, license: str | None = None) -> Path:
    """Write a folder for a model hub: the bundle, and its model card; it appears whole or not at all.

    The card is the one that ``fluxtalk align`` wrote beside the bundle, or else made of what the bundle records.
    Engines, which fit one machine, are left out.

    Args:
        folder: folder to write; it must not exist, or be empty.
        license: name of the license for the card's header, as hubs spell it (``apache-2.0``).

    Raises:
        BundleError: the bundle was changed since it was written.
        UsageError: the folder is not empty, or the license is not such a name.
    """
    checked = read_bundle(bundle.folder)
    beside = bundle.folder.resolve().parent / CARD
    written = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
    if model_card.is_card(written):
        card = model_card.licensed(written, license)
    else:
        card = model_card.compose(checked.manifest, license)
    path = Path(folder)
    with atomic_folder(path, UsageError) as writing:
        copy_bundle(checked, writing / FOLDER)
        write_atomically(writing / CARD, card)
    return path


def push_to_hub(
    bundle: Bundle,
    repository: str,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes as one commit. Never executed by our tests: it needs the hub.

    Args:
        repository: ``owner/name``; made if it does not exist.
        license: as for `save_pretrained`.
        private: True for a repository that only its owner sees; None is the owner's default.
        token: token of the hub; None is that of ``hf auth login``.

    Returns:
        address of the commit.

    Raises:
        UsageError: huggingface_hub is not installed, or the name or license is not valid.
        BundleError: the bundle was changed since it was written.
    """
    named = repository.removeprefix(PREFIX)
    if not _REPOSITORY.fullmatch(named):
        raise UsageError(f"A repository of the hub is named owner/name; got {repository!r}.")
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="fluxtalk-push-") as temporary:
        folder = save_pretrained(bundle, Path(temporary) / "model", license)
        api.create_repo(named, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=named,
            folder_path=folder,
            commit_message=f"FluxTalk bundle {bundle.manifest.bundle_hash[:12]}",
            # What an earlier bundle had and this one has not must not stay.
            delete_patterns=[f"{FOLDER}/*"],
        )
    return str(commit.commit_url)


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle's folder without its engines."""
    skipped = shutil.ignore_patterns(ENGINES)
    shutil.copytree(
        bundle.folder,
        folder,
        ignore=lambda parent, names: skipped(parent, names) if Path(parent) == bundle.folder else set(),
    )


def _within(folder: Path) -> Path:
    inner = folder / FOLDER
    return inner if not (folder / MANIFEST).exists() and (inner / MANIFEST).is_file() else folder


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UsageError("Names of the hub need huggingface_hub; pip install 'fluxtalk[hub]'.") from None
    return huggingface_hub
