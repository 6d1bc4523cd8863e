"""Indexes over HTTP, against a running server, and the library's own answers."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.index import IndexSpec
from fluxtalk.runtime import Embedder, load, maxsim, similarity
from fluxtalk.runtime.index.build import build_index
from fluxtalk.runtime.index.limits import Limits
from fluxtalk.runtime.index.search import SearchIndex
from tests.conftest import Made
from tests.runtime.server.conftest import PATIENCE_S, running, start

COUNT = 40  # pictures and texts


@pytest.fixture(scope="module")
def indexes(made: Made, pictures: list[Path], texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One index of images for each kind of output, and one of texts."""
    folder = tmp_path_factory.mktemp("indexes")
    names = [*map(str, pictures), str(folder / "gone.png")]
    with load(made.bundle.folder, threads=1) as embedder:
        for output in ("pooled", "concat", "tokens"):
            vectors = embedder.embed("image", [*pictures, pictures[0]], 3, output)
            content = IndexSpec.of(embedder.bundle, "image", output, 3)
            build_index(folder / f"{output}.index", [vectors], names, content)
        content = IndexSpec.of(embedder.bundle, "text", "pooled")
        build_index(folder / "words.index", [embedder.embed("text", texts)], texts, content)
    return [folder / f"{name}.index" for name in ("pooled", "concat", "tokens", "words")]


def options(indexes: list[Path]) -> list[Any]:
    return [part for folder in indexes for part in ("--index", folder)]


@pytest.fixture(scope="module")
def client(
    attentive: Bundle, indexes: list[Path], pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        running(attentive.folder, log, *options(indexes), "--serve_items", pictures[0].parent, "--max_body", 1) as up,
        up.client() as client,
    ):
        yield client


def search(client: httpx.Client, **body: Any) -> Any:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows(answer: Any) -> list[int]:
    return [hit["row"] for hit in answer["data"]]


def scores(answer: Any) -> np.ndarray:
    return np.array([hit["score"] for hit in answer["data"]])


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_one_vector_each(
    client: httpx.Client, embedder: Embedder, pictures: list[Path], texts: list[str], k: int
) -> None:
    answer = search(client, text=texts[3], index="pooled", k=k, n=5)
    cosines = similarity(embedder.embed("text", [texts[3]], k), embedder.embed("image", [*pictures, pictures[0]], 3))[0]
    assert np.abs(scores(answer) - np.sort(cosines)[::-1][:5]).max() <= 1e-5
    assert np.abs(scores(answer) - cosines[rows(answer)]).max() <= 1e-5
    listed = [*map(str, pictures), None]
    assert [hit["item"] for hit in answer["data"] if hit["row"] < COUNT] == [
        listed[row] for row in rows(answer) if row < COUNT
    ]
    assert (answer["k"], answer["how"], answer["bytes_per_item"]) == (k, "pooled", 48 * 4)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_tokens_of_both_sides_are_cut_to_k(
    client: httpx.Client, embedder: Embedder, pictures: list[Path], texts: list[str], k: int
) -> None:
    answer = search(client, text=texts[0], index="tokens", k=k, n=COUNT)
    compared = min(k, 3)
    query = embedder.embed("text", [texts[0]], k, "tokens")[:, :compared]
    items = embedder.embed("image", [*pictures, pictures[0]], 3, "tokens")[:, :compared]
    expected = maxsim(query, items)[0]
    assert np.abs(scores(answer) - np.sort(expected)[::-1][:COUNT]).max() <= 1e-5
    assert np.abs(scores(answer) - expected[rows(answer)]).max() <= 1e-5
    assert answer["how"] == "rerank"
    assert answer["tokens_compared"] == compared
    # The first token finds candidates; more of them are read from where all tokens lie.
    assert answer["bytes_per_item"] == 48 * 4 * (1 if k == 1 else 1 + compared)
    assert answer["milliseconds"].keys() == {"embed", "search"}
    assert all(value > 0 for value in answer["milliseconds"].values())


@pytest.mark.parametrize(("k", "item_k"), [(1, 3), (2, 1), (3, 2), (4, 3)])
def test_both_sides_have_a_k(
    client: httpx.Client, embedder: Embedder, pictures: list[Path], texts: list[str], k: int, item_k: int
) -> None:
    answer = search(client, text=texts[0], index="tokens", k=k, item_k=item_k, n=COUNT)
    query = embedder.embed("text", [texts[0]], k, "tokens")[:, :3]
    expected = maxsim(query, embedder.embed("image", [*pictures, pictures[0]], item_k, "tokens"))[0]
    assert np.abs(scores(answer) - expected[rows(answer)]).max() <= 1e-5
    assert np.abs(scores(answer) - np.sort(expected)[::-1][:COUNT]).max() <= 1e-5
    assert (answer["k"], answer["item_k"], answer["tokens_compared"]) == (k, item_k, item_k)
    assert answer["chosen"] is None


def test_first_tokens_side_by_side(
    client: httpx.Client, embedder: Embedder, pictures: list[Path], texts: list[str]
) -> None:
    answer = search(client, text=texts[2], index="concat", k=2, item_k=2, n=5)
    sides = (
        embedder.embed("text", [texts[2]], 2, "concat"),
        embedder.embed("image", [*pictures, pictures[0]], 2, "concat"),
    )
    expected = similarity(*sides)[0]
    assert np.abs(scores(answer) - np.sort(expected)[::-1][:5]).max() <= 1e-5


def test_limits_choose_k_from_the_curve(
    client: httpx.Client, embedder: Embedder, indexes: list[Path], texts: list[str]
) -> None:
    curve = client.get("/info").json()["curve"]
    assert curve["counts"] == [1, 2, 3]
    assert curve["latency_ms"]["text"].keys() == {"1", "2", "3", "4"}
    table = np.array(curve["recall"]["text->image"]["tokens"])
    for limits in ({"min_recall": 0.9}, {"max_bytes": 600}, {"max_bytes": 200, "deadline_ms": 1e6}):
        answer = search(client, text=texts[4], index="tokens", n=6, **limits)
        k, item_k, told = answer["k"], answer["item_k"], answer["chosen"]
        assert told["recall"] == table[k - 1, item_k - 1]
        assert told["cutoff"] == 10
        assert told["recall_share"] >= limits.get("min_recall", 0)
        assert answer["bytes_per_item"] <= limits.get("max_bytes", np.inf)
        # The library makes the same choice.
        opened = SearchIndex(indexes[2])
        chosen = opened.compare(embedder, "text", limits=Limits(**limits))
        assert (chosen.query.k, chosen.item_k) == (k, item_k)
        hits = opened.search_items(embedder, "text", [texts[4]], 6, limits=Limits(**limits))[0]
        assert np.abs(scores(answer) - [hit.similarity for hit in hits]).max() <= 1e-5
    fields = {"text": "a", "index": "tokens", "min_recall": "0.5", "max_bytes": "10000"}
    form = client.post("/v1/search", files={name: (None, value) for name, value in fields.items()})
    assert form.status_code == 200, form.text
    assert form.json()["chosen"]["recall_share"] >= 0.5


def test_an_index_of_tokens_by_one_vector(
    client: httpx.Client, embedder: Embedder, pictures: list[Path], texts: list[str]
) -> None:
    answer = search(client, text=texts[1], index="tokens", how="pooled", k=3, n=4)
    first = embedder.embed("image", [*pictures, pictures[0]], 1)
    cosines = similarity(embedder.embed("text", [texts[1]], 3), first)[0]
    assert np.abs(scores(answer) - np.sort(cosines)[::-1][:4]).max() <= 1e-5
    assert answer["bytes_per_item"] == 48 * 4


def test_images_find_themselves_in_every_form(client: httpx.Client, pictures: list[Path]) -> None:
    data = pictures[7].read_bytes()
    as_json = search(client, image=base64.b64encode(data).decode(), index="tokens", k=2, n=3)
    assert as_json["data"][0]["item"] == str(pictures[7])
    assert as_json["data"][0]["score"] == pytest.approx(1, abs=1e-5)
    form = {"index": "tokens", "k": "2", "n": "3"}
    as_form = client.post("/v1/search", data=form, files={"image": ("any name.png", data, "image/png")})
    assert as_form.status_code == 200, as_form.text
    assert rows(as_form.json()) == rows(as_json)
    words = client.post("/v1/search", data={"text": "black chess queen", "index": "words"}, files={"k": (None, "1")})
    assert words.status_code == 200, words.text
    assert len(words.json()["data"]) == 10


def test_the_library_and_the_server_agree(
    client: httpx.Client, embedder: Embedder, indexes: list[Path], texts: list[str]
) -> None:
    for folder in indexes:
        answer = search(client, text=texts[5], index=folder.stem, n=6)
        hits = SearchIndex(folder).search_items(embedder, "text", [texts[5]], 6)[0]
        assert [hit["item"] for hit in answer["data"]] == [hit.item for hit in hits]
        assert np.abs(scores(answer) - [hit.similarity for hit in hits]).max() <= 1e-5


def test_what_can_be_searched(client: httpx.Client, made: Made) -> None:
    listed = {index["name"]: index for index in client.get("/v1/indexes").json()["data"]}
    assert list(listed) == ["pooled", "concat", "tokens", "words"]
    assert listed["tokens"]["how"] == ["rerank", "pooled"]
    assert listed["words"] == {
        "name": "words",
        "modality": "text",
        "kind": "text",
        "output": "pooled",
        "k": 4,
        "dtype": "float32",
        "dimension": 48,
        "items": COUNT,
        "bytes_per_item": 192,
        "how": ["pooled"],
        "space_id": made.bundle.manifest.space_id("pooled"),
        "has_pictures": False,
    }


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"index": "pooled"}, 400, "image"),
        ({"text": "a", "image": "a", "index": "pooled"}, 400, "text"),
        ({"text": "a"}, 400, "index"),
        ({"text": "a", "index": 3}, 400, "index"),
        ({"text": "a", "index": "other"}, 404, "index"),
        ({"text": "a", "index": "pooled", "n": 0}, 400, "n"),
        ({"text": "a", "index": "pooled", "n": 1001}, 400, "n"),
        ({"text": "a", "index": "pooled", "n": "3"}, 400, "n"),
        ({"text": "a", "index": "pooled", "k": 5}, 400, "k"),
        ({"text": "a", "index": "pooled", "k": True}, 400, "k"),
        ({"text": "a", "index": "pooled", "k": 10**30}, 400, None),
        ({"text": "a", "index": "pooled", "how": "rerank"}, 400, "how"),
        ({"text": "a", "index": "concat", "k": 2}, 400, "k"),
        ({"text": "a", "index": "pooled", "count": 3}, 400, "count"),
        ({"text": "a", "index": "tokens", "item_k": 4}, 400, "item_k"),
        ({"text": "a", "index": "tokens", "item_k": 2, "how": "pooled"}, 400, "item_k"),
        ({"text": "a", "index": "pooled", "item_k": 2}, 400, "item_k"),
        ({"text": "a", "index": "concat", "k": 1, "item_k": 2}, 400, "item_k"),
        ({"text": "a", "index": "tokens", "min_recall": 1.5}, 400, "min_recall"),
        ({"text": "a", "index": "tokens", "max_bytes": 9}, 400, "max_bytes"),
        ({"text": "a", "index": "tokens", "deadline_ms": 0}, 400, "deadline_ms"),
        ({"text": "a", "index": "tokens", "deadline_ms": 1e-9}, 400, "deadline_ms"),
        ({"text": "a", "index": "words", "min_recall": 0.5}, 400, "min_recall"),
        ({"text": " ", "index": "pooled"}, 422, "text"),
        ({"text": [1, 2, 3], "index": "pooled"}, 400, "text"),
        ({"text": {"a": 1}, "index": "pooled"}, 422, "text"),
        ({"image": "bm8gaW1hZ2U=", "index": "pooled"}, 422, "image"),
        ({"image": "https://example.org/a.png", "index": "pooled"}, 422, "image"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_meant_is_refused(client: httpx.Client, body: Any, status: int, param: str | None) -> None:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    if param is not None:
        assert error["param"] == param, error
    assert error["message"].endswith(".")
    assert "input 0" not in error["message"]


@pytest.mark.parametrize("k", [0, 5, 1 << 62])
def test_a_wrong_k_is_told_which_there_are(client: httpx.Client, k: int) -> None:
    answer = client.post("/v1/search", json={"text": "a", "index": "pooled", "k": k})
    expected = f"k must be an integer from 1 to 4, the register tokens of this bundle; got {k}."
    assert answer.json()["error"]["message"] == expected


def test_bodies_that_are_no_request(client: httpx.Client) -> None:
    form = {"content-type": "multipart/form-data; boundary=b"}
    for content in (
        b"",
        b"nothing",
        b"--b\r\nrubbish\r\n\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="te',
    ):
        answer = client.post("/v1/search", content=content, headers=form)
        assert answer.status_code == 400, answer.text
    assert client.post("/v1/search", content=b"a", headers={"content-type": "multipart/form-data"}).status_code == 400
    assert client.post("/v1/search", content=b"a", headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/v1/search", content=b"[]", headers={"content-type": "application/json"}).status_code == 400
    twice = client.post("/v1/search", files=[("text", (None, "a")), ("text", (None, "b"))])
    assert twice.status_code == 400
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    whole = part % (b"text", b"a") + part % (b"index", b"pooled")
    assert client.post("/v1/search", content=whole + b"--b--\r\n", headers=form).status_code == 200
    cut = client.post("/v1/search", content=whole + b"--b", headers=form)
    assert "cut off" in cut.json()["error"]["message"]
    number = client.post("/v1/search", data={"text": "1984", "index": "pooled"}, files={"n": (None, "1")})
    assert len(number.json()["data"]) == 1, number.text
    large = client.post("/v1/search", files={"image": ("a.png", b"\0" * (1 << 21))})
    assert large.status_code == 413


def test_pictures_of_listed_images_only(client: httpx.Client, pictures: list[Path]) -> None:
    answer = client.get("/v1/indexes/tokens/items/3")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(Image.open(pictures[3])))
    for path in ("tokens/items/9999", "words/items/0", "other/items/0", "tokens/items/-1", "tokens/items/../../x"):
        assert client.get(f"/v1/indexes/{path}").status_code == 404, path
    assert client.get(f"/v1/indexes/tokens/items/{COUNT}").status_code == 404  # its file is gone


def test_pictures_are_small_upright_and_nothing_but_pixels(
    made: Made, embedder: Embedder, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photo = Image.effect_noise((1200, 600), 40).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010E] = "where it was taken"
    photo.save(photos / "photo.jpg", exif=turned)
    photo.save(tmp_path / "private.jpg")
    (photos / "link.jpg").symlink_to(tmp_path / "private.jpg")
    (photos / "inside.jpg").symlink_to("photo.jpg")
    Image.new("RGBA", (300, 400), (9, 8, 7, 0)).save(photos / "clear.png")
    Image.fromarray(np.full((30, 20), 40_000, dtype=np.uint16)).save(photos / "deep.png")
    (photos / "secret.txt").write_text("not an image")
    (photos / "cut.png").write_bytes((photos / "clear.png").read_bytes()[:60])
    names = ["photo.jpg", "clear.png", "deep.png", "secret.txt", "cut.png", "."]
    # Pictures that are there, and that the server was not told to give out.
    names += ["link.jpg", "../private.jpg", "../photos/../private.jpg", "inside.jpg"]
    names = [str(photos / name) for name in names]
    vectors = np.eye(len(names), 48, dtype=np.float32)
    build_index(tmp_path / "i.index", [vectors], names, IndexSpec.of(embedder.bundle, "image"))
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        running(made.bundle.folder, log, "--index", tmp_path / "i.index", "--serve_items", photos) as up,
        up.client() as client,
    ):
        seen = [client.get(f"/v1/indexes/i/items/{row}") for row in range(len(names))]
        assert [answer.status_code for answer in seen] == [200, 200, 200, 422, 422, 404, 404, 404, 404, 200]
        shown = [Image.open(io.BytesIO(answer.content)) for answer in seen[:3]]
        assert shown[0].size == (128, 256)
        assert not shown[0].getexif()
        assert (shown[1].size, shown[1].mode) == ((192, 256), "RGBA")
        assert set(np.asarray(shown[2]).ravel().tolist()) == {40_000 >> 8}
        # One index needs no name, and this bundle has no attention.
        assert len(search(client, text="omega")["data"]) == len(names)
        refused = client.post("/v1/attention", json={"image": "AA=="})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "no_attention"
        assert "--attention" in refused.json()["error"]["message"]


def test_without_indexes_and_with_a_key(made: Made, tmp_path: Path, indexes: list[Path]) -> None:
    (tmp_path / "keys").write_text("secret\n")
    with (
        running(made.bundle.folder, tmp_path / "log", "--api_key_file", tmp_path / "keys") as up,
        up.client() as client,
    ):
        for path in ("/v1/indexes", "/v1/indexes/a/items/0"):
            assert client.get(path).status_code == 401
        assert client.post("/v1/search", json={"text": "a"}).status_code == 401
        client.headers["authorization"] = "Bearer secret"
        assert client.get("/v1/indexes").json()["data"] == []
        assert client.post("/v1/search", json={"text": "a"}).status_code == 404
    with running(made.bundle.folder, tmp_path / "log", *options(indexes[:1])) as up, up.client() as client:
        refused = client.get("/v1/indexes/pooled/items/0")
        assert refused.status_code == 403
        assert "--serve-items" in refused.json()["error"]["message"]
        assert client.get("/v1/indexes").json()["data"][0]["has_pictures"] is False


def test_attention_over_the_image(client: httpx.Client, attentive: Bundle, pictures: list[Path]) -> None:
    data = pictures[0].read_bytes()
    answer = client.post("/v1/attention", json={"image": base64.b64encode(data).decode()}).json()
    with load(attentive.folder, threads=1) as embedder:
        expected = embedder.attention("image", [data])[0]
    found = np.array(answer["attention"])
    assert found.shape == (4, 16)
    assert np.abs(found - expected).max() <= 1e-6
    assert np.abs(found.sum(axis=1) - 1).max() <= 1e-5
    assert (answer["grid"], answer["before_grid"], answer["length"]) == ([4, 4], 0, 16)
    fewer = client.post("/v1/attention", files={"image": ("a.png", data)}, data={"k": "2"}).json()
    assert np.abs(np.array(fewer["attention"]) - found[:2]).max() <= 1e-6
    assert client.post("/v1/attention", json={"text": "a"}).status_code == 400
    assert client.post("/v1/attention", json={"image": "AAAA"}).status_code == 422


def test_an_index_of_another_space_ends_the_start(
    made: Made, indexes: list[Path], tmp_path: Path, embedder: Embedder
) -> None:
    foreign = IndexSpec("elsewhere", "0" * 64, "text", "pooled", 4)
    build_index(tmp_path / "foreign.index", [np.eye(2, 48, dtype=np.float32)], ["a", "b"], foreign)
    shutil.copytree(indexes[0], tmp_path / "changed.index")
    (tmp_path / "changed.index" / "items.json").write_text("[]")
    shutil.copytree(indexes[0], tmp_path / "pooled.index")
    for number, (folders, said) in enumerate(
        [
            ([tmp_path / "foreign.index"], "do not share a space"),
            ([tmp_path / "changed.index"], "was changed"),
            ([tmp_path / "none.index"], "is not an index"),
            ([indexes[0], tmp_path / "pooled.index"], "called 'pooled'"),
        ]
    ):
        log = tmp_path / f"log{number}"
        started = start(made.bundle.folder, log, *options(folders))
        assert started.process.wait(PATIENCE_S) in (1, 2)
        started.process.communicate()
        assert said in log.read_text()
        assert "Traceback" not in log.read_text()
