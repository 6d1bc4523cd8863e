"""The page at `/` in a real browser, against a running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.demo.browser import browser, why_no_browser
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.index import IndexSpec
from fluxtalk.runtime import load
from fluxtalk.runtime.index.build import build_index
from fluxtalk.runtime.server.http.page_routes import PAGE_FILES
from tests.conftest import Made
from tests.runtime.server.conftest import running

needs_browser = pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))
KEY = "correct horse"


@pytest.fixture(scope="module")
def indexes(
    attentive: Bundle, pictures: list[Path], texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("indexes")
    with load(attentive.folder, threads=1) as embedder:
        for name, modality, items in (("glyphs", "image", list(map(str, pictures))), ("names", "text", texts)):
            tokens = embedder.embed(modality, items, 3, "tokens")
            build_index(folder / f"{name}.index", [tokens], items, IndexSpec.of(embedder.bundle, modality, "tokens", 3))
    return folder


@pytest.fixture(scope="module")
def url(
    attentive: Bundle, indexes: Path, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    both = ("--index", indexes / "glyphs.index", "--index", indexes / "names.index")
    with running(attentive.folder, log, *both, "--serve_items", pictures[0].parent) as up:
        yield up.url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


class Tab:
    """A page, and what it did that it must not: messages of the console, requests to elsewhere."""

    def __init__(self, chromium: Any, url: str, **settings: Any) -> None:
        self.context = chromium.new_context(**settings)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("request", self._watch)
        self._url = url
        self.page.goto(url)

    def _watch(self, request: Any) -> None:
        if not request.url.startswith((self._url + "/", f"blob:{self._url}/")):
            self.faults.append(f"request: {request.url}")

    def names(self) -> list[str]:
        found: list[str] = self.page.locator("#results .hit").evaluate_all("cards => cards.map(card => card.title)")
        return found

    def scores(self) -> list[str]:
        found: list[str] = self.page.locator("#results .figures span:first-child").all_inner_texts()
        return found

    def settle(self, k: int) -> None:
        """Until the answers at k, and the whole table, are there."""
        self.page.locator("#facts", has_text=f"k = {k} ").wait_for()
        self.page.locator("#costs tbody tr").nth(3).wait_for()
        self.page.locator('#results[aria-busy="false"]').wait_for()


@pytest.fixture
def tab(chromium: Any, url: str) -> Iterator[Tab]:
    opened = Tab(chromium, url, viewport={"width": 1280, "height": 900})
    opened.page.locator("#main").wait_for()
    yield opened
    assert opened.faults == []
    opened.context.close()


def told(url: str, **body: Any) -> list[str]:
    """What the server answers by itself."""
    answer = httpx.post(url + "/v1/search", json={"n": 12, **body}, trust_env=False)
    assert answer.status_code == 200, answer.text
    return [hit["item"] for hit in answer.json()["data"]]


@needs_browser
def test_a_text_finds_images_and_the_slider_changes_them(tab: Tab, url: str) -> None:
    page = tab.page
    assert page.locator("#empty").is_visible()
    page.locator("#text").fill("latin small letter a")
    tab.settle(4)
    full, scores = tab.names(), tab.scores()
    assert full == told(url, text="latin small letter a", index="glyphs", k=4)
    page.locator("#results .picture img").nth(11).wait_for()
    page.locator("#k").focus()
    for k in (3, 2, 1):
        page.keyboard.press("ArrowLeft")
        tab.settle(k)
        assert tab.names() == told(url, text="latin small letter a", index="glyphs", k=k)
    assert page.locator("#k-shown").inner_text() == "k = 1"
    assert tab.scores() != scores
    table = [row.inner_text().split("\t") for row in page.locator("#costs tbody tr").all()]
    assert [row[0] for row in table] == ["1", "2", "3", "4"]
    assert [row[2] for row in table] == ["192", "576", "768", "768"]
    assert table[3][1] == "12 of 12"
    assert all(float(part) > 0 for row in table for part in row[3:])
    assert page.locator("#costs tr.now").inner_text().startswith("1")


@needs_browser
def test_across_modalities_and_by_one_vector(tab: Tab, url: str) -> None:
    page = tab.page
    page.locator("#text").fill("greek capital letter omega")
    tab.settle(4)
    page.get_by_label("names: 40 text items").check()
    page.locator("#results.words li").nth(11).wait_for()
    tab.settle(4)
    assert tab.names() == told(url, text="greek capital letter omega", index="names", k=4)
    page.get_by_label("one vector").check()
    page.locator("#facts", has_text="192 bytes").wait_for()
    tab.settle(4)
    assert tab.names() == told(url, text="greek capital letter omega", index="names", k=4, how="pooled")
    # An answer becomes the next query.
    picked = tab.names()[4]
    page.locator("#results .hit").nth(4).click()
    page.get_by_label("all k tokens").check()
    tab.settle(4)
    assert page.locator("#text").input_value() == picked
    assert tab.names()[0] == picked


@needs_browser
def test_one_token_against_all_of_each_item(tab: Tab, url: str) -> None:
    page = tab.page
    page.locator("#text").fill("latin small letter a")
    tab.settle(4)
    page.get_by_label("all 3").check()
    page.locator("#k").focus()
    page.keyboard.press("Home")
    tab.settle(1)
    assert tab.names() == told(url, text="latin small letter a", index="glyphs", k=1, item_k=3)
    table = [row.inner_text().split("\t") for row in page.locator("#costs tbody tr").all()]
    assert [row[2] for row in table] == ["768"] * 4
    assert page.locator("#k-note").inner_text() == "The first token alone of the query, against all 3 of each item."


_DROP = """(target, [bytes, type]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type }));
    target.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@needs_browser
def test_a_dropped_image_is_looked_for_and_into(tab: Tab, pictures: list[Path]) -> None:
    page = tab.page
    page.locator("#drop").evaluate(_DROP, [list(pictures[5].read_bytes()), "image/png"])
    tab.settle(4)
    assert tab.names()[0] == str(pictures[5])
    assert page.locator("#preview").is_visible()
    page.locator("#maps figure").nth(3).wait_for()
    said = page.locator("#maps figcaption").all_inner_texts()
    assert ["shared" in text for text in said] == [True, True, True, False]
    assert "4 × 4 cells" in page.locator("#attention-note").inner_text()
    drawn = page.locator("#maps canvas").first.evaluate(
        "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    )
    assert drawn > 20
    page.locator("#k").focus()
    page.keyboard.press("Home")
    tab.settle(1)
    assert page.locator("#maps figure.off").count() == 3
    page.locator("#clear").click()
    page.locator("#empty").wait_for()
    assert not page.locator("#attention").is_visible()


@needs_browser
def test_what_goes_wrong_is_said(chromium: Any, url: str, pictures: list[Path], tmp_path: Path) -> None:
    tab = Tab(chromium, url)
    tab.page.locator("#main").wait_for()
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:80])
    tab.page.locator("#file").set_input_files(tmp_path / "broken.png")
    tab.page.locator("#answers-error").wait_for()
    assert "image" in tab.page.locator("#answers-error").inner_text()
    assert tab.names() == []
    tab.page.locator("#file").set_input_files(pictures[0])
    tab.settle(4)
    assert not tab.page.locator("#answers-error").is_visible()
    tab.page.route("**/v1/search", lambda route: route.abort())
    tab.page.locator("#text").fill("omega")
    tab.page.locator("#answers-error", has_text="cannot be reached").wait_for()
    # The browser itself notes failed requests; nothing else is noted.
    assert all(fault.startswith("console: Failed to load resource") for fault in tab.faults), tab.faults
    tab.context.close()


@needs_browser
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window_in_light_and_dark(chromium: Any, url: str, width: int, scheme: str) -> None:
    tab = Tab(chromium, url, viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.page.locator("#text").fill("black chess queen")
    tab.settle(4)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) > 384
    assert light == (scheme == "light")
    assert tab.faults == []
    tab.context.close()


@needs_browser
def test_a_key_is_asked_for_and_no_index_is_said(chromium: Any, made: Made, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY + "\n")
    with running(made.bundle.folder, tmp_path / "log", "--api_key_file", tmp_path / "keys") as up:
        tab = Tab(chromium, up.url)
        page = tab.page
        page.locator("#key-form").wait_for()
        assert not page.locator("#main").is_visible()
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        page.locator("#key-error").wait_for()
        page.locator("#key").fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#main").wait_for()
        assert "--index" in page.locator("#empty").inner_text()
        page.locator("#drop").evaluate(_DROP, [list((Path(__file__)).read_bytes()[:50]), "image/png"])
        page.locator("#attention-note", has_text="--attention").wait_for()
        page.reload()
        page.locator("#main").wait_for()
        tab.context.close()


def test_its_files_load_nothing_from_elsewhere(url: str) -> None:
    for path, (_, media_type) in PAGE_FILES.items():
        answer = httpx.get(url + path, trust_env=False)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == media_type
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
