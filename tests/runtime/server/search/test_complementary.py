"""Indexes of complementary tokens: what only one modality knows, searched from that modality alone."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from fluxtalk.errors import UsageError
from fluxtalk.runtime import load
from fluxtalk.runtime.index.limits import Limits
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.tokens import l2_normalize
from tests.conftest import Made
from tests.runtime.server.conftest import running
from tests.runtime.test_serving import run


@pytest.fixture(scope="module")
def index(made: Made, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private") / "private.index"
    items = [str(path) for path in pictures]
    built = run("index", "build", made.bundle.folder, "image", *items, "--kind", "complementary", "-o", folder)
    assert built.exit_code == 0, built.output
    return folder


def test_the_library_finds_the_nearest_complementary_tokens(made: Made, index: Path, pictures: list[Path]) -> None:
    opened = SearchIndex(index)
    with load(made.bundle.folder) as embedder:
        items = embedder.embed("image", [Path(name) for name in opened.stored.items], output="complementary")
        queries = embedder.embed("image", pictures[:3], output="complementary")
        cosines = l2_normalize(queries[:, 0]) @ l2_normalize(items[:, 0]).T
        for row, hits in enumerate(opened.search_items(embedder, "image", pictures[:3], 5)):
            assert [hit.similarity for hit in hits] == pytest.approx(np.sort(cosines[row])[::-1][:5], abs=1e-5)
        with pytest.raises(UsageError, match="holds what only image knows, so a query is of that modality; got text"):
            opened.search_items(embedder, "text", ["omega"])
        with pytest.raises(UsageError, match="complementary tokens come last"):
            opened.search_items(embedder, "image", pictures[:3], k=1)
        with pytest.raises(UsageError, match="No recall was measured of complementary tokens"):
            opened.search_items(embedder, "image", pictures[:3], limits=Limits(min_recall=0.5))


def test_the_server_answers_as_the_library(made: Made, index: Path, pictures: list[Path], tmp_path: Path) -> None:
    with load(made.bundle.folder) as embedder:
        hits = SearchIndex(index).search_items(embedder, "image", [pictures[4]], 6)[0]
    image = base64.b64encode(pictures[4].read_bytes()).decode()
    with running(made.bundle.folder, tmp_path / "log", "--index", index) as up, up.client() as client:
        answer = client.post("/v1/search", json={"image": image, "index": "private", "n": 6}).json()
        assert [hit["item"] for hit in answer["data"]] == [hit.item for hit in hits]
        assert [hit["score"] for hit in answer["data"]] == pytest.approx([h.similarity for h in hits], abs=1e-5)
        for body, words in (
            ({"text": "omega"}, "holds what only image knows, so a query is of that modality; got text"),
            ({"image": image, "k": 2}, "complementary tokens come last, so they need all 4 tokens"),
            ({"image": image, "max_bytes": 64}, "leave max_bytes out"),
        ):
            refused = client.post("/v1/search", json={**body, "index": "private"})
            assert refused.status_code == 400
            assert words in refused.text
