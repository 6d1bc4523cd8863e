"""Checkpoints whose code this user trusts, remembered by content hash.

A checkpoint may name a factory of installed code (``module:PACKAGE.MODULE:FACTORY``), and a stranger's may name any
function with any arguments. So what was not made here is not run before the user has said so once. The store is a
folder of empty files, each named by a hash: adding one is atomic, and processes need no lock.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

_ALLOWED_HERE: set[str] = set()
"""Hashes of this process, for machines on which the store cannot be written."""


def store() -> Path:
    """Name the folder of trusted hashes: in ``FLUXTALK_CONFIG_DIR``, else in the user's configuration folder."""
    return Path(os.environ.get("FLUXTALK_CONFIG_DIR") or click.get_app_dir("fluxtalk")) / "trusted-code"


def trust(content_hash: str) -> None:
    """Remember that this user trusts the code that a checkpoint of this content runs."""
    _ALLOWED_HERE.add(content_hash)
    try:
        store().mkdir(parents=True, exist_ok=True)
        (store() / content_hash).touch()
    except OSError:
        # A home that cannot be written, as in many containers: the word then holds for this process.
        return


def is_trusted(content_hash: str) -> bool:
    """Look up whether this user made the checkpoint of this content, or allowed its code."""
    if content_hash in _ALLOWED_HERE:
        return True
    try:
        return (store() / content_hash).is_file()
    except OSError:  # a home that cannot even be read
        return False
