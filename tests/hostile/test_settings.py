"""Options, specifications of encoders, and names of data, with malformed values in every field."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fluxtalk.datasets import load_dataset
from fluxtalk.errors import FluxTalkError
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.config_file import merge_options, read_options
from fluxtalk.train.stage1.cli import main as stage1
from fluxtalk.train.stage1.create import stage1_from_specification
from tests.hostile.values import MALFORMED, malformed, require_sentence
from tests.preprocess.examples import tokenizer_json

ENCODER = """
import torch

class Encoder(torch.nn.Module):
    dim = 4

    def __init__(self, width=4):
        super().__init__()
        self.table = torch.nn.Embedding(16, 4)

    def forward(self, values, mask=None):
        if mask is None:
            return values.mean(dim=1)[..., :4]
        return self.table(values.clamp(0, 15))
"""
SPECIFICATION: dict[str, Any] = {
    "data": "pairs.csv",
    "modalities": {
        "text": {
            "encoder": "module:hostile_encoder:Encoder",
            "options": {"width": 4},
            "preprocess": {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 8},
        },
        "image": {
            "encoder": "module:hostile_encoder:Encoder",
            "preprocess": {
                "kind": "image",
                "height": 8,
                "width": 8,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "background": "white",
            },
        },
        "sound": {"encoder": "features:4"},
    },
}
SPECIFIED = (None, True, -1, 1.5, 10**30, float("nan"), "", "32", "x" * 300, "\0", [1, "a"], {"a": 1})
"""Fewer values: each builds every encoder."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("specification")
    (made / "hostile_encoder.py").write_text(ENCODER)
    (made / "tokenizer.json").write_text(tokenizer_json(special_tokens=True))
    yield made
    sys.modules.pop("hostile_encoder", None)


def written(folder: Path, content: Any) -> Path:
    path = folder / "encoders.json"
    path.write_text(json.dumps(content))
    return path


# What is accepted is built, tried and exported, which takes a second or so for each value.
@pytest.mark.parametrize(
    "modality", [pytest.param("text", marks=pytest.mark.slow), pytest.param("image", marks=pytest.mark.slow), "sound"]
)
def test_every_field_of_a_specification(folder: Path, modality: str) -> None:
    # Alone: every value builds and tries what the others have.
    whole = {"data": "pairs.csv", "modalities": {modality: SPECIFICATION["modalities"][modality]}}
    assert set(stage1_from_specification(written(folder, whole)).modalities) == {modality}
    refused = 0
    for what, content in malformed(whole, SPECIFIED):
        path = written(folder, content)
        refused += require_sentence(lambda path=path: stage1_from_specification(path), what)  # type: ignore[misc]
    assert refused > 20


@pytest.mark.parametrize("value", ["32", 1.5, None, 1, True, 0, 10**30])
def test_the_command_says_what_max_length_is(folder: Path, value: Any) -> None:
    content = json.loads(json.dumps(SPECIFICATION))
    content["modalities"]["text"]["preprocess"]["max_length"] = value
    done = CliRunner().invoke(stage1, ["create", str(written(folder, content)), "-o", str(folder / "made.pth")])
    assert done.exit_code in (1, 2), done.output
    assert isinstance(done.exception, SystemExit)
    assert done.output.startswith("error: ")
    assert len(done.output.splitlines()) == 1
    assert not (folder / "made.pth").exists()


def test_every_option_of_training(tmp_path: Path) -> None:
    required = {"stage1_checkpoint": "stage1.pth", "output_dir": "runs", "log_name": "mine"}
    path = tmp_path / "options.json"
    refused = 0
    for field in dataclasses.fields(TrainConfig):
        for value in MALFORMED:
            path.write_text(json.dumps({**required, field.name: value}))
            refused += require_sentence(
                lambda: merge_options(read_options(path), {}),
                f"{field.name} is {value!r:.60}",
            )
    assert refused > 500


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_every_cell_of_a_table(tmp_path: Path, suffix: str) -> None:
    rows = [{"image": f"{i}.png", "text": f"words {i}", "id": f"{i}", "split": "train"} for i in range(3)]
    for row in rows:
        (tmp_path / row["image"]).write_bytes(b"a picture")
    path = tmp_path / f"t.{suffix}"
    refused = 0
    for column in rows[0]:
        for value in MALFORMED:
            changed = [{**rows[0], column: value}, *rows[1:]]
            if suffix == "csv":
                lines = [
                    ",".join(rows[0]),
                    *(",".join('"' + str(v).replace('"', '""') + '"' for v in row.values()) for row in changed),
                ]
            else:
                lines = [json.dumps(row) for row in changed]
            path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
            for kinds in (None, {"image": "image", "text": "text"}):
                refused += require_sentence(
                    lambda kinds=kinds: load_dataset(str(path), tmp_path, kinds),  # type: ignore[misc]
                    f"{column} is {value!r:.60}",
                )
    assert refused > 40


def test_files_with_names_that_no_file_has_are_counted_among_the_missing(tmp_path: Path) -> None:
    names = ["missing.png", "a" * 300 + ".png", "b/" * 3000 + "c.png", "d\\u0000.png"]
    lines = [f'{{"image": "{name}", "text": "item {number}"}}' for number, name in enumerate(names)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(FluxTalkError, match="names 4 of 4 files that do not exist"):
        load_dataset(str(tmp_path / "t.jsonl"), tmp_path, {"image": "image", "text": "text"})


@pytest.mark.parametrize(
    "name",
    [
        *("", "?", "glyphs?", "t.csv?", "t.csv?a", "t.csv?a=", "t.csv?=a", "t.csv?a=b", "t.csv?A=text&text=text"),
        *("t.csv?text=no&image=no", "t.csv?text=text&text=text", "t.csv?a=%ff&b=text", "t.csv?a=%00&b=text"),
        *("x-{0..}.tar?a=png&b=txt", "x-{0..9999999999}.tar?a=png&b=txt", "x-{a..b}.tar", "x-{}.tar", "x.tar?a=&b=txt"),
        *(
            "n" * 5000,
            "n" * 300 + ".csv",
            "n" * 300 + ".tar?a=png&b=txt",
            "a\0b.csv",
            "a\0b",
            "\ud83d.csv",
            "/dev/null",
        ),
        *("/dev/null.csv", ".", "..", "/", "t.csv/x.csv", "t.csv/", "t.parquet", "t.JSONL"),
    ],
)
def test_names_of_data(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("image,text\na,b\n")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    (tmp_path / "t.JSONL").write_bytes(b"[]")
    assert require_sentence(lambda: load_dataset(name, tmp_path), f"--data {name!r:.60}")
