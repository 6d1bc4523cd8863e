"""A bundle as a folder of sentence-transformers: texts, pictures, k, prompts applied once."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.encoders.torchvision_operators import declare_torchvision_operators
from fluxtalk.errors import InputError, TokenCountError, UsageError
from fluxtalk.runtime import Embedder
from tests.integrations.conftest import PROMPTS

declare_torchvision_operators()

from sentence_transformers import SentenceTransformer  # noqa: E402

from fluxtalk.integrations.sentence_transformers import save_sentence_transformer  # noqa: E402

TEXTS = ["black chess queen", "omega", "greek small letter alpha"]


@pytest.fixture(scope="module")
def folder(prompted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_transformer(prompted, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def same(found: Any, wanted: Any) -> None:
    """Compare up to the rounding of other batches."""
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_texts_are_embedded_with_one_prompt(model: Any, embedder: Embedder) -> None:
    assert model.prompts == PROMPTS
    same(model.encode_query(TEXTS), embedder.encode_query(TEXTS))
    same(model.encode_document(TEXTS), embedder.encode_document(TEXTS))
    # Nothing said: the default prompt, there as here.
    same(model.encode(TEXTS), embedder.encode(TEXTS))
    same(model.encode(TEXTS), embedder.embed("text", [f"chess {text}" for text in TEXTS], prompt=""))
    same(model.encode(TEXTS, prompt_name="query"), embedder.embed("text", TEXTS, prompt_name="query"))
    same(model.encode(TEXTS, prompt="king "), embedder.embed("text", [f"king {text}" for text in TEXTS], prompt=""))
    same(model.encode(TEXTS, prompt=""), embedder.embed("text", TEXTS, prompt=""))
    assert not np.allclose(model.encode(TEXTS, prompt=""), model.encode(TEXTS))


def test_pictures_are_embedded_and_found_by_texts(model: Any, embedder: Embedder, table_path: Path) -> None:
    paths = sorted(table_path.parent.glob("test-*.png"))[:3]
    wanted = embedder.embed("image", paths)
    opened = [Image.open(path) for path in paths]
    same(model.encode(opened), wanted)
    same(model.encode([{"image": picture} for picture in opened]), wanted)
    same(model.encode(paths), wanted)
    same(model.encode([str(path) for path in paths]), wanted)
    same(model.encode(opened[0]), wanted[0])
    scores = model.similarity(model.encode_query(TEXTS), model.encode(opened))
    same(scores, embedder.similarity(embedder.encode_query(TEXTS), wanted))
    assert model.supports("image")


def test_k_is_chosen_at_each_call_or_in_the_folder(
    model: Any, embedder: Embedder, prompted: Path, tmp_path: Path
) -> None:
    same(model.encode(TEXTS, k=1), embedder.encode(TEXTS, k=1))
    assert model.get_embedding_dimension() == embedder.embedding_dim == model.encode("omega").shape[0]
    saved = save_sentence_transformer(prompted, tmp_path / "one", k=1, modalities=["text"])
    one = SentenceTransformer(str(saved), trust_remote_code=True, device="cpu", model_kwargs={"threads": 1})
    same(one.encode(TEXTS), embedder.encode(TEXTS, k=1))
    assert one.modalities == ["text"]
    with pytest.raises(TokenCountError):
        model.encode(TEXTS, k=99)
    with pytest.raises(TokenCountError):
        save_sentence_transformer(prompted, tmp_path / "none", k=99)
    assert not (tmp_path / "none").exists()


def test_a_model_saved_again_or_sent_to_a_process_is_the_same(model: Any, tmp_path: Path) -> None:
    wanted = model.encode(TEXTS)
    model.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    same(SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu").encode(TEXTS), wanted)
    same(pickle.loads(pickle.dumps(model)).encode(TEXTS), wanted)


def test_what_it_cannot_embed_is_a_sentence(model: Any, prompted: Path, folder: Path, tmp_path: Path) -> None:
    picture = Image.new("L", (8, 8))
    with pytest.raises(ValueError, match="mixes multiple modalities"):  # the library's own word
        model.encode(["omega", picture])
    with pytest.raises(InputError, match="A batch holds items of one kind; got image and text"):
        model[0].preprocess(["omega", picture])
    with pytest.raises(InputError, match=r"items of the kind text or image"):
        model[0].preprocess([{"image": picture, "text": "omega"}])
    with pytest.raises(InputError, match=r"items of the kind text or image"):
        model[0].preprocess([("omega", "alpha")])
    with pytest.raises(InputError, match="A text must not be empty"):
        model.encode(["omega", " "])
    with pytest.raises(UsageError, match="already exists and is not empty"):
        save_sentence_transformer(prompted, folder)
    with pytest.raises(UsageError, match="Modalities of texts or images are needed, of image, text; got sound"):
        save_sentence_transformer(prompted, tmp_path / "new", modalities=["sound"])


def test_sentence_transformers_asks_for_trust(folder: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(folder), device="cpu")


def test_a_folder_without_our_settings_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text((folder / "modules.json").read_text())
    with pytest.raises(UsageError, match=r"it has no fluxtalk\.json"):
        SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
