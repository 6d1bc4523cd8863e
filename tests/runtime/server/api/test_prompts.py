"""Prompts of a bundle: by role, by name, in every dialect, in search, and from the command line."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from fluxtalk.artifacts.bundle import read_bundle, write_manifest
from fluxtalk.errors import UsageError
from fluxtalk.inspect_cli import inspect
from fluxtalk.runtime import Embedder, load
from fluxtalk.runtime.bulk.cli import embed
from fluxtalk.runtime.index.cli import main as index
from tests.conftest import Made
from tests.runtime.server.conftest import in_thread

PROMPTS = {"query": "black ", "passage": "greek letter ", "other": "small "}
TEXT = "chess queen"


@pytest.fixture(scope="module")
def folder(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared bundle, whose texts have prompts."""
    folder = tmp_path_factory.mktemp("prompts") / "bundle"
    shutil.copytree(made.bundle.folder, folder)
    manifest = read_bundle(folder).manifest
    text = manifest.modalities["text"]
    prompted = dataclasses.replace(text, preprocess={**text.preprocess, "prompts": PROMPTS})
    write_manifest(folder, dataclasses.replace(manifest, modalities={**manifest.modalities, "text": prompted}))
    return folder


@pytest.fixture(scope="module")
def prompted(folder: Path) -> Iterator[Embedder]:
    with load(folder, threads=1) as embedder:
        yield embedder


@pytest.fixture(scope="module")
def searched(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("indexes") / "texts"
    done = CliRunner().invoke(index, ["build", str(folder), "text", TEXT, "omega", "-o", str(output)])
    assert done.exit_code == 0, done.output
    return output


@pytest.fixture(scope="module")
def client(folder: Path, searched: Path) -> Iterator[httpx.Client]:
    with (
        in_thread(read_bundle(folder), indexes=(searched,), accept_token_ids=True) as server,
        server.client() as client,
    ):
        yield client


def close(found: Any, expected: Any) -> bool:
    return bool(np.abs(np.asarray(found) - np.asarray(expected)).max() <= 1e-6)


def test_a_role_is_its_prompt_and_the_text(prompted: Embedder, embedder: Embedder) -> None:
    plain, query, document = (embedder.embed("text", [text + TEXT]) for text in ("", "black ", "greek letter "))
    assert not close(plain, query)
    assert close(prompted.embed("text", [TEXT]), plain)
    assert close(prompted.embed("text", [TEXT], role="query"), query)
    assert close(prompted.encode_query([TEXT]), query)
    assert close(prompted.encode_document([TEXT], k=2), embedder.embed("text", ["greek letter " + TEXT], k=2))
    assert close(prompted.embed("text", [TEXT], prompt_name="passage"), document)
    assert close(embedder.encode_query([TEXT]), plain)
    with pytest.raises(UsageError, match="The prompts are query, passage, other; got 'ask'"):
        prompted.embed("text", [TEXT], prompt_name="ask")
    with pytest.raises(UsageError, match="A role is query or document"):
        prompted.embed("text", [TEXT], role="ask")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, None),
        ({"prompt_name": "other"}, "other"),
        ({"input_type": "query"}, "query"),
        ({"input_type": "document"}, "passage"),
        ({"input_type": None}, None),
        ({"task": "retrieval.query"}, "query"),
        ({"task": "retrieval.passage"}, "passage"),
        ({"task": "text-matching"}, None),
        ({"task": "text-matching", "prompt_name": "other"}, "other"),
    ],
)
def test_embeddings_take_a_prompt(client: httpx.Client, prompted: Embedder, body: Any, name: str | None) -> None:
    answer = client.post("/v1/embeddings", json={"input": [TEXT], **body})
    assert answer.status_code == 200, answer.text
    expected = prompted.embed("text", [TEXT], prompt_name=name)[0]
    assert close(answer.json()["data"][0]["embedding"], expected)


@pytest.mark.parametrize(
    ("input_type", "name"),
    [("search_query", "query"), ("search_document", "passage"), ("classification", None), ("clustering", None)],
)
def test_cohere_input_types_are_roles(
    client: httpx.Client, prompted: Embedder, input_type: str, name: str | None
) -> None:
    answer = client.post("/v2/embed", json={"texts": [TEXT], "input_type": input_type})
    assert close(answer.json()["embeddings"]["float"][0], prompted.embed("text", [TEXT], prompt_name=name)[0])


def test_token_ids_take_no_prompt(client: httpx.Client, prompted: Embedder) -> None:
    ids = prompted.prepare("text", [TEXT])[0].tolist()
    answer = client.post("/v1/embeddings", json={"input": [ids], "prompt_name": "query"})
    assert close(answer.json()["data"][0]["embedding"], prompted.embed("text", [TEXT])[0])


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt_name": "ask"}, "prompt_name", "The prompts are query, passage, other; got 'ask'"),
        ({"prompt_name": "other", "input_type": "query"}, "input_type", "so does prompt_name"),
        ({"input_type": "query", "task": "retrieval.query"}, "task", "task says what input_type says"),
        ({"input_type": "ask"}, "input_type", "must be document or query"),
    ],
)
def test_what_is_no_prompt_is_refused(client: httpx.Client, body: Any, param: str, words: str) -> None:
    answer = client.post("/v1/embeddings", json={"input": [TEXT], **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_search_asks_with_queries_for_documents(client: httpx.Client, prompted: Embedder, searched: Path) -> None:
    hit = client.post("/v1/search", json={"text": TEXT, "n": 2}).json()["data"]
    query, documents = prompted.encode_query([TEXT])[0], prompted.encode_document([TEXT, "omega"])
    expected = dict(zip([TEXT, "omega"], documents @ query, strict=True))
    assert {one["item"]: pytest.approx(one["score"], abs=1e-5) for one in hit} == expected
    found = CliRunner().invoke(index, ["search", str(searched), "text", TEXT, "-n", "1"])
    assert found.output.split()[0] == f"{max(expected.values()):.4f}"


def test_what_there_is_is_told(client: httpx.Client, folder: Path) -> None:
    assert client.get("/info").json()["modalities"]["text"]["prompts"] == PROMPTS
    assert inspect(folder)["modalities"]["text"]["preprocess"]["prompts"] == PROMPTS
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"type": "string", "enum": list(PROMPTS)} in schemas["OpenAIRequest"]["properties"]["prompt_name"]["anyOf"]


def test_embed_takes_a_role(folder: Path, prompted: Embedder, tmp_path: Path) -> None:
    done = CliRunner().invoke(embed, [str(folder), "text", TEXT, "--role", "query", "-o", str(tmp_path / "q.npy")])
    assert done.exit_code == 0, done.output
    assert close(np.load(tmp_path / "q.npy"), prompted.encode_query([TEXT]))
