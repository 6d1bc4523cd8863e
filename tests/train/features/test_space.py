"""Space on disk is estimated before anything is encoded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fluxtalk.errors import DataError
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.sources import feature_sources
from fluxtalk.train.features.space import cache_sizes, require_space
from tests.train.features.given_features import CPU, DIM, given, ragged


def test_the_estimate_is_near_what_is_written(tmp_path: Path) -> None:
    stage1, data = given(ragged(700))
    for options in (CacheOptions(), CacheOptions("int8"), CacheOptions(pool=7)):
        cache = tmp_path / f"{options.dtype}-{options.pool}"
        reductions = feature_reductions(stage1, data, options, cache)
        (size,) = cache_sizes(stage1, data, ["train"], cache, options, reductions, CPU)
        feature_sources(stage1, data, "train", "cache", cache, CPU, options, reductions)
        written = sum(path.stat().st_size for path in cache.rglob("*values.npy"))
        written += sum(path.stat().st_size for path in cache.rglob("*scales.npy"))
        assert 0.8 * written < size.missing < 1.3 * written
        assert cache_sizes(stage1, data, ["train"], cache, options, reductions, CPU) == []


def feature_reductions(stage1, data, options, cache):  # type: ignore[no-untyped-def]
    from fluxtalk.train.features.fit_reduction import fitted_reductions

    return fitted_reductions(stage1, data, options, cache, CPU, SingleProcess())


def test_what_does_not_fit_is_refused_with_figures_and_ways_out(tmp_path: Path) -> None:
    stage1, data = given(ragged())
    (size,) = cache_sizes(stage1, data, ["train"], tmp_path, CacheOptions(), {}, CPU)
    assert size.line() == f"sound 40 items x 4 vectors x {DIM} numbers x 2 bytes"
    require_space([size], tmp_path, CacheOptions())
    huge = dataclasses.replace(size, dim=384, missing=10**18)
    with pytest.raises(DataError, match=r"need about 1e\+09 GB more in .* GB are free") as refused:
        require_space([huge], tmp_path / "not" / "yet", CacheOptions())
    for way in ("--feature-dtype int8", "--feature-pool", "--feature-pca", "another --cache-dir", "384 numbers"):
        assert way in str(refused.value)
    with pytest.raises(DataError) as refused:
        require_space([huge], tmp_path, CacheOptions("int8", pca=64, pool=2))
    assert "--feature" not in str(refused.value)
