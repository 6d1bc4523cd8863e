"""The search at scale keeps what it measured, and what it measured is true."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import search_scale
from bench.compare.search_scale import ANSWERS, Items, Part
from fluxtalk.tokens import l2_normalize
from tests.conftest import Made


def _made(*_: Any) -> Items:
    rng = np.random.default_rng(0)
    tokens = l2_normalize(rng.standard_normal((300, 2, 16)).astype(np.float32))
    return Items(tokens.astype(np.float16), tokens[:5], tokens[5:9])


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the contenders that were built, of two exact searches."""
    names: list[str] = []

    def build(name: str, items: Items, part: Part) -> search_scale.Search:
        names.append(name)
        return search_scale._exact(items, part)

    def contenders(items: Items, _: Path) -> Any:
        for name, k in (("exact", 1), ("other", 2)):
            yield name, Part(k, 16), "float32", functools.partial(build, name, items, Part(k, 16))

    monkeypatch.setattr(search_scale, "make_items", _made)
    monkeypatch.setattr(search_scale, "_indexes", contenders)
    return names


def test_a_search_that_was_stopped_goes_on(
    made: Made, built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, exact = tmp_path / "search.json", search_scale._exact

    def stopped(items: Items, part: Part) -> search_scale.Search:
        if part.k == 2:
            raise KeyboardInterrupt
        return exact(items, part)

    with monkeypatch.context() as patch:
        patch.setattr(search_scale, "_exact", stopped)
        with pytest.raises(KeyboardInterrupt):
            search_scale.measure(made.bundle.folder, tmp_path, 300, 10, 5, store)
    first = json.loads(store.read_text())["rows"]
    assert [row["index"] for row in first] == ["exact"]
    found = search_scale.measure(made.bundle.folder, tmp_path, 300, 10, 5, store)
    assert built == ["exact", "other", "other"]
    assert found["rows"][0] == first[0]
    assert json.loads(store.read_text()) == {**found, "failed": {}}
    # All tokens, exactly, are the truth; one of them is not, and each query finds itself.
    assert found["rows"][1]["recall"] == 1
    assert 1 / ANSWERS <= found["rows"][0]["recall"] < 1
    # Other items are measured from the beginning.
    search_scale.measure(made.bundle.folder, tmp_path, 301, 10, 5, store)
    assert built[3:] == ["exact", "other"]
