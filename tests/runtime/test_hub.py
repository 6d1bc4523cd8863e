"""Bundles by name: folders for a model hub, their cards, and the cache of the real huggingface_hub."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard

import fluxtalk
from fluxtalk.artifacts.bundle import read_bundle
from fluxtalk.errors import BundleError, UsageError
from fluxtalk.runtime import Embedder
from fluxtalk.runtime.model_card import commands, compose
from fluxtalk.scoring.parity import TOLERANCES
from tests.conftest import Made

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = ["black chess queen", "omega"]


@pytest.fixture
def embedder(made: Made) -> Embedder:
    return fluxtalk.load(made.bundle.folder, threads=1)


def cached(saved: Path, cache: Path) -> None:
    """Lay a repository's files out as huggingface_hub keeps them: blobs, and links to them."""
    root = cache / "models--somebody--glyphs"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(path for path in saved.rglob("*") if path.is_file())):
        blob = root / "blobs" / f"{number:040x}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file, blob)
        link = root / "snapshots" / COMMIT / file.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


def test_what_is_saved_is_loaded_again_and_says_what_it_is(embedder: Embedder, tmp_path: Path) -> None:
    saved = embedder.save_pretrained(tmp_path / "model", license="Apache-2.0")
    card = ModelCard.load(saved / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "fluxtalk"
    assert card.data.pipeline_tag == "feature-extraction"
    assert set(card.data.to_dict()["encoders"]) == {"image", "text"}
    for said in ("4 register tokens", "the first 3 are shared", "| text to image | 1 |", "| fp32 |", "fluxtalk serve"):
        assert said in card.text
    with fluxtalk.load(saved, threads=1) as again:
        assert np.array_equal(again.embed("text", TEXTS), embedder.embed("text", TEXTS))
    with pytest.raises(UsageError, match="is not empty"):
        embedder.save_pretrained(saved)
    with pytest.raises(UsageError, match="A license is a name as hubs spell it"):
        embedder.save_pretrained(tmp_path / "other", license="all rights\nreserved")
    assert not (tmp_path / "other").exists()


def test_a_card_that_align_wrote_goes_along_with_the_license(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.bundle.folder, tmp_path / "aligned" / "bundle")
    (tmp_path / "aligned" / "README.md").write_text("---\nlibrary_name: fluxtalk\n---\n\n# baselines and all\n")
    with fluxtalk.load(tmp_path / "aligned", threads=1) as opened:
        card = (opened.save_pretrained(tmp_path / "model", "mit") / "README.md").read_text()
    assert card == "---\nlibrary_name: fluxtalk\nlicense: mit\n---\n\n# baselines and all\n"


def test_a_repository_comes_from_the_hubs_cache(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    cached(embedder.save_pretrained(tmp_path / "model"), tmp_path / "cache")
    for revision in (None, "main", COMMIT):
        with fluxtalk.load("hf:somebody/glyphs", threads=1, revision=revision, local_files_only=True) as opened:
            assert np.array_equal(opened.embed("text", TEXTS), embedder.embed("text", TEXTS))
            # What came from the cache can be passed on: links become files.
            saved = opened.save_pretrained(tmp_path / str(revision))
            assert not any(path.is_symlink() for path in saved.rglob("*"))


def test_a_changed_file_in_the_cache_is_refused(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    cached(embedder.save_pretrained(tmp_path / "model"), tmp_path / "cache")
    graph = next((tmp_path / "cache").rglob("*.onnx")).resolve()
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="changed"):
        fluxtalk.load("hf:somebody/glyphs", local_files_only=True)


def test_names_that_mean_nothing_are_sentences(
    made: Made, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BundleError, match="hf:nobody/none cannot be had from the hub's cache"):
        fluxtalk.load("hf:nobody/none", local_files_only=True)
    with pytest.raises(UsageError, match="is named hf:owner/name"):
        fluxtalk.load("hf:none")
    with pytest.raises(UsageError, match="A folder has no revision"):
        fluxtalk.load(made.bundle.folder, revision="main")
    with pytest.raises(UsageError, match="is named owner/name"):
        embedder.push_to_hub("none")


def test_what_is_asked_of_the_hub_exists_in_the_installed_library() -> None:
    """The upload itself was never executed: there is no hub here."""
    asked = {
        "create_repo": ("private", "exist_ok"),
        "upload_folder": ("repo_id", "folder_path", "commit_message", "delete_patterns"),
    }
    for name, arguments in asked.items():
        known = inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters
        assert set(arguments) <= set(known)


def test_an_index_keeps_tokens_where_they_are_compared(made: Made) -> None:
    manifest = read_bundle(made.bundle.folder).manifest
    for late in (False, True):
        build, search, _ = commands(Path("bundle"), "pairs.csv", manifest, late)
        assert ("--kind tokens" in build) == late
        assert search.startswith("fluxtalk index search image.index text")


def test_a_card_says_what_every_precision_promises(made: Made) -> None:
    """bfloat16 promises a cosine and no largest difference."""
    manifest = read_bundle(made.bundle.folder).manifest
    entry = manifest.precisions["fp32"]
    every = {name: dataclasses.replace(entry, tolerance=TOLERANCES[name]) for name in ("fp16", "bf16", "int8")}
    parts = {
        name: dataclasses.replace(part, graphs=dict.fromkeys(("fp32", *every), part.graphs["fp32"]))
        for name, part in manifest.modalities.items()
    }
    card = compose(dataclasses.replace(manifest, precisions={"fp32": entry, **every}, modalities=parts))
    assert "| fp16 | at most 1e-02 |" in card
    assert "| bf16 | a cosine of at least 0.9995 |" in card
    assert "| int8 | a cosine of at least 0.995 |" in card
