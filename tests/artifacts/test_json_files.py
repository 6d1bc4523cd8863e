"""JSON of strangers: every reader of every artifact refuses what it cannot take, with a sentence and at once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fluxtalk.align.folder import AlignFolder
from fluxtalk.artifacts import bundle, cache, engine, index, run
from fluxtalk.artifacts.json_files import MAX_DEPTH, decode_json, read_json, read_object
from fluxtalk.config import HeadConfig
from fluxtalk.errors import FluxTalkError, UsageError
from fluxtalk.train.config_file import read_options
from fluxtalk.train.stage1.create import stage1_from_specification

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "bundle": ("manifest.json", bundle.read_bundle),
    "index": ("index.json", index.read_index),
    "run": ("run.json", run.read_description),
    "engine": ("a.engine.json", lambda folder: engine.read_record(folder, "a.engine")),
    "features": ("manifest.json", cache.read_manifest),
    "align": ("align.json", lambda folder: AlignFolder(folder).read_record()),
    "encoders": ("encoders.json", lambda folder: stage1_from_specification(folder / "encoders.json")),
    "options": ("options.json", lambda folder: read_options(folder / "options.json")),
    "toml": ("options.toml", lambda folder: read_options(folder / "options.toml")),
}
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a number": b"3",
    "a list": b"[]",
    "an empty object": b'{"format": {}}',
    "deep": b'{"format": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep but not for the decoder": b'{"format": ' + b"[" * 200 + b"]" * 200 + b"}",
    "a lone surrogate": b'{"format": "\\ud83d", "data": "\\udc00"}',
    "a large integer": b'{"format": 1' + b"0" * 30 + b', "epochs": 1' + b"0" * 30 + b"}",
    "five thousand digits": b'{"format": ' + b"9" * 5000 + b"}",
    "not a number": b'{"format": NaN, "dropout": Infinity}',
    "a large number": b'{"format": 1e999}',
    "not UTF-8": b'{"format": "\xff"}',
    "zeros": bytes(100),
    "a null in a name": b'{"data": "\\u0000", "modalities": {"\\u0000": {}}}',
}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(reader: str, folder: Path) -> str:
    """What a reader says."""
    with at_most(30), pytest.raises(FluxTalkError) as caught:
        READERS[reader][1](folder)
    sentence = str(caught.value)
    assert 20 < len(sentence) < 700, sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("reader", READERS)
def test_what_no_reader_can_take_is_a_sentence(tmp_path: Path, reader: str) -> None:
    name = READERS[reader][0]
    for what, content in CONTENTS.items():
        if reader == "toml" and what == "empty":
            continue
        (tmp_path / name).write_bytes(content)
        sentence = refused(reader, tmp_path)
        assert any(part in sentence for part in (name, str(tmp_path), "The modality")), (what, sentence)


@pytest.mark.parametrize("reader", READERS)
def test_pipes_devices_folders_and_huge_files_are_not_read(tmp_path: Path, reader: str) -> None:
    path = tmp_path / READERS[reader][0]

    def is_sparse() -> None:
        with path.open("wb") as file:
            file.truncate(1 << 40)

    for make in (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path.name),
        path.mkdir,
        is_sparse,
    ):
        make()
        if path.is_symlink() and not path.exists():
            # A ring of links is an error of the system, which a command line turns into a sentence.
            with at_most(30), pytest.raises((FluxTalkError, OSError)):
                READERS[reader][1](tmp_path)
        else:
            refused(reader, tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_the_reader_takes_what_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"a": [1, -(2**63) + 1, 1.5, "é", "\U0001f600", None, True], "b": {"c": []}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        path.write_text(text, encoding="utf-8")
        assert read_json(path) == value
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_object(path) == value
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert decode_json(nested) is not None
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        decode_json(f"[{nested}]")
    assert decode_json('{"model_max_length": 1000000000000000019884624838656, "x": NaN}', any_number=True)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dim", 10**30, "HeadConfig.dim is an integer of at most 64 bits; got an integer of 100 bits"),
        ("dim", "256", "HeadConfig.dim is an integer.*got '256'"),
        ("dim", True, "HeadConfig.dim is an integer.*got True"),
        ("dim", None, "got None"),
        ("dropout", float("nan"), "HeadConfig.dropout is a finite number"),
        ("dropout", "0.1", "HeadConfig.dropout is a finite number"),
        ("self_attention", 1, "HeadConfig.self_attention is true or false"),
        ("dims", {"text": 1.5}, "HeadConfig.dims is an object, each value an integer"),
        ("dims", [], "HeadConfig.dims is an object"),
        ("aggregation", ["mean"], "HeadConfig.aggregation is text"),
    ],
)
def test_a_field_of_another_type_is_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        HeadConfig.from_dict({"dims": {"text": 8}, field: value})


def test_numbers_may_be_integers() -> None:
    assert HeadConfig.from_dict({"dims": {"text": 8}, "dropout": 0}).dropout == 0
