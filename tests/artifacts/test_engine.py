"""Engines beside a bundle: written with their record, found by what they fit, refused when changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fluxtalk.artifacts.engine import (
    FLAVOR_NAMES,
    EngineRecord,
    TensorRecord,
    find_engine,
    read_engines,
    read_plan,
    read_record,
    record_path,
    write_engine,
)
from fluxtalk.artifacts.files import hash_bytes, hash_json
from fluxtalk.errors import ArtifactError, BackendError, UsageError

PLAN = bytes(range(256)) * 8
HERE: dict[str, Any] = {
    "modality": "text",
    "precision": "fp32",
    "flavor": "rtx",
    "version": "1.7.1.116",
    "compute_capability": "8.9",
    "graph_hash": "a" * 64,
}


def made(plan: bytes = PLAN, **changes: Any) -> EngineRecord:
    values: dict[str, Any] = {
        "modality": "text",
        "precision": "fp32",
        "flavor": "rtx",
        "version": "1.7.1.116",
        "cuda_major": 13,
        "compute_capabilities": ["8.0", "8.9"],
        "profiles": [{"batch": [1, 8, 64], "length": [1, 16, 32], "k": [1, 4, 4]}],
        "version_compatible": False,
        "graph_hash": "a" * 64,
        "inputs": [TensorRecord("input_ids", "int64", [-1, -1])],
        "outputs": [TensorRecord("tokens", "float32", [-1, -1, 48])],
        "engine_hash": hash_bytes(plan),
        "engine_bytes": len(plan),
    }
    return EngineRecord(**{**values, **changes})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    assert read_engines(engines) == []
    record = made()
    path = write_engine(engines, PLAN, record)
    assert path.name.startswith("text.fp32.rtx-1.7.1.116.sm80-sm89.")
    assert path.suffix == ".engine"
    assert read_engines(engines) == [record]
    assert read_plan(engines, record) == PLAN
    assert record.identity["implementation"] == "cursor"
    with pytest.raises(ValueError, match="another plan"):
        write_engine(engines, PLAN + b"x", record)


def test_the_name_tells_everything_but_the_graph() -> None:
    name = made().file
    assert made(graph_hash="b" * 64).file == name
    different: list[dict[str, Any]] = [
        {"modality": "image"},
        {"precision": "fp16"},
        {"flavor": "tensorrt"},
        {"version": "1.7.2"},
        {"cuda_major": 12},
        {"compute_capabilities": ["8.9"]},
        {"profiles": [{"batch": [1, 8, 64], "length": [1, 16, 32], "k": [1, 3, 4]}]},
        {"version_compatible": True},
    ]
    names = {made(**change).file for change in different}
    assert len(names | {name}) == len(different) + 1


def test_one_changed_byte_is_refused(tmp_path: Path) -> None:
    record = made()
    path = write_engine(tmp_path, PLAN, record)
    for at in (0, len(PLAN) // 2, len(PLAN) - 1):
        content = bytearray(PLAN)
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"text\.fp32.*changed since it was built.*fluxtalk-export trt"):
            read_plan(tmp_path, record)
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        read_plan(tmp_path, record)
    with pytest.raises(ArtifactError, match="missing"):
        read_engines(tmp_path)


def test_one_changed_byte_of_the_record_is_refused(tmp_path: Path) -> None:
    """Every byte but those between the values, which say nothing."""
    record = made()
    path = record_path(tmp_path, write_engine(tmp_path, PLAN, record).name)
    whole = path.read_bytes()
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1
        if content[at : at + 1].isspace() or whole[at : at + 1].isspace():
            continue
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            read_engines(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="not valid JSON"):
        read_engines(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "not the record"),
        ({"schema_version": 99}, "schema 99"),
        ({"flavor": "cuda"}, "malformed.*flavor"),
        ({"profiles": [{"batch": [1, 0, 3], "k": [1, 1, 1]}]}, "malformed.*batch"),
        ({"compute_capabilities": ["89"]}, "malformed.*8.9"),
        ({"more": 1}, "malformed.*unknown more"),
        ({"precision": "fp16"}, "describes the engine text.fp16"),
    ],
)
def test_foreign_records_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """With a hash that matches: a record is not believed because it is intact."""
    path = record_path(tmp_path, write_engine(tmp_path, PLAN, made()).name)
    content = {**json.loads(path.read_text()), **change}
    content.pop("record_hash")
    path.write_text(json.dumps({**content, "record_hash": hash_json(content)}))
    with pytest.raises(ArtifactError, match=words):
        read_engines(tmp_path)


def test_an_engine_without_a_record_is_not_there(tmp_path: Path) -> None:
    """A build that was killed between the two files leaves an engine without a record."""
    name = write_engine(tmp_path, PLAN, made()).name
    record_path(tmp_path, name).unlink()
    assert read_record(tmp_path, name) is None
    assert read_engines(tmp_path) == []


def test_the_newest_fitting_engine_is_found(tmp_path: Path) -> None:
    old = made(built_at="2026-01-01T00:00:00+00:00")
    new = made(
        built_at="2026-01-02T00:00:00+00:00", profiles=[{"batch": [1, 1, 4], "length": [1, 8, 8], "k": [1, 1, 4]}]
    )
    for record in (
        new,
        old,
        made(precision="fp16"),
        made(modality="image", profiles=[{"batch": [1, 1, 1], "k": [1] * 3}]),
    ):
        write_engine(tmp_path, PLAN, record)
    assert find_engine(tmp_path, **HERE) == new
    assert find_engine(tmp_path, **{**HERE, "compute_capability": "8.0"}, cuda_major=13) == new
    assert find_engine(tmp_path, **{**HERE, "precision": "fp16"}).precision == "fp16"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modality": "image"}, "there is none of them"),
        ({"precision": "bf16"}, "there is none of them"),
        ({"flavor": "tensorrt"}, "of flavor tensorrt-rtx"),
        ({"version": "1.8.0"}, r"of version 1\.7\.1\.116"),
        ({"compute_capability": "12.0"}, r"for compute capability 8\.0, 8\.9"),
        ({"graph_hash": "b" * 64}, "built from another graph"),
        ({"cuda_major": 12}, "for CUDA 13"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_run(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    engines = tmp_path / "bundle" / "engines"
    write_engine(engines, PLAN, made())
    asked = {**HERE, **change}
    with pytest.raises(BackendError, match=words) as caught:
        find_engine(engines, **asked)
    flavor = FLAVOR_NAMES[asked["flavor"]]
    command = f"fluxtalk-export trt {engines.parent} --flavor {flavor} --modality {asked['modality']}"
    assert command in str(caught.value)
    if asked["flavor"] == "rtx":
        assert f"--compute-capability {asked['compute_capability']}`" in str(caught.value)
    else:
        assert "on this GPU" in str(caught.value)


def test_version_compatible_engines_run_later_but_must_be_allowed(tmp_path: Path) -> None:
    record = made(flavor="tensorrt", version="10.16.1.11", compute_capabilities=["9.0"], version_compatible=True)
    write_engine(tmp_path, PLAN, record)
    here = {**HERE, "flavor": "tensorrt", "compute_capability": "9.0"}
    for version in ("10.16.1.11", "10.17.0.2"):
        assert find_engine(tmp_path, **{**here, "version": version}, allow_host_code=True) == record
        with pytest.raises(BackendError, match="code of its own that must be allowed"):
            find_engine(tmp_path, **{**here, "version": version})
    for version in ("10.15.9.9", "11.4.0.106"):
        with pytest.raises(BackendError, match="of version 10"):
            find_engine(tmp_path, **{**here, "version": version}, allow_host_code=True)


def test_a_record_validates_itself() -> None:
    impossible: list[dict[str, Any]] = [
        {"modality": "Text"},
        {"version": "latest"},
        {"compute_capabilities": []},
        {"profiles": []},
        {"profiles": [{"batch": [1, 2, 3]}]},
        {"profiles": [{"batch": [1, 2], "k": [1, 1, 1]}]},
        {"engine_bytes": 0},
    ]
    for change in impossible:
        with pytest.raises(UsageError):
            made(**change)
    assert dataclasses.replace(made(), version="10.16.1.11rc1").version.endswith("rc1")
