"""Names of pretrained encoders: what they hold, and what cannot be one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxtalk.errors import UsageError
from fluxtalk.model.encoders.libraries import is_library_source
from fluxtalk.train.stage1.pack import parse_encoders, parse_names, parse_prompts
from fluxtalk.train.stage1.sources.names import parse_source


def test_a_name_is_taken_apart() -> None:
    source = parse_source("timm:vit_small_patch14_dinov2.lvd142m@weights.pth?layer=-2&class-tokens=drop&image-size=224")
    assert (source.library, source.name) == ("timm", "vit_small_patch14_dinov2.lvd142m")
    assert source.file == Path("weights.pth")
    assert source.options == {"layer": -2, "class_tokens": "drop", "image_size": 224}
    assert source.chosen() == {"layer": -2, "class_tokens": "drop"}
    assert source.stored == "timm:vit_small_patch14_dinov2.lvd142m@weights.pth"


def test_a_folder_is_stored_by_its_last_part_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    source = parse_source(f"hf:{tmp_path}/mine?pooled=append")
    assert source.stored == "hf:mine"
    assert source.folder == tmp_path / "mine"
    assert parse_source("hf:mine").within(tmp_path).folder == tmp_path / "mine"
    assert parse_source("hf:some/name").folder is None
    (tmp_path / "me@home").mkdir()
    assert parse_source(f"hf:{tmp_path}/me@home").folder == tmp_path / "me@home"


def test_options_beside_a_name_win_over_those_in_it() -> None:
    assert parse_source("hf:a?layer=1", {"layer": 3, "max-length": 8}).options == {"layer": 3, "max_length": 8}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("huggingface:a", "hf:NAME"),
        ("hf:", "hf:NAME"),
        ("hf:a@file", "timm:NAME@FILE"),
        ("timm:a@", "timm:NAME@FILE"),
        ("hf:a?layer", "key=value"),
        ("hf:a?color=red", "options are"),
        ("hf:a?layer=last", "whole number"),
    ],
)
def test_what_is_no_name_is_refused(source: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_source(source)


def test_a_path_that_does_not_exist_is_not_looked_up_on_a_hub() -> None:
    with pytest.raises(UsageError, match="does not exist"):
        _ = parse_source("hf:./nowhere").folder


@pytest.mark.parametrize(
    ("name", "color"),
    [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("none", None)],
)
def test_backgrounds_are_colors(name: str, color: tuple[int, int, int] | None) -> None:
    assert parse_source(f"hf:a?background={name.replace('#', '%23')}").background == {"background": color}


def test_a_background_that_is_no_color_is_refused() -> None:
    with pytest.raises(UsageError, match="is a color"):
        _ = parse_source("hf:a?background=transparentish").background


def test_library_sources_are_told_from_others() -> None:
    assert [is_library_source(one) for one in ("hf:a", "st:a", "module:a:b", "small-image", "features:3")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_words_of_the_command_line() -> None:
    assert parse_encoders(["image=timm:a", "text=st:b?layer=1"]) == {"image": "timm:a", "text": "st:b?layer=1"}
    assert parse_prompts(["text.query=query: ", "text.document="]) == {"text": {"query": "query: ", "document": ""}}
    assert parse_names(["text=query"]) == {"text": "query"}


@pytest.mark.parametrize("words", [["image"], ["=timm:a"], ["image="], ["image=a", "image=b"]])
def test_malformed_encoders_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="--encoder"):
        parse_encoders(words)


@pytest.mark.parametrize("word", ["text", "text=a", ".query=a", "text.=a"])
def test_malformed_prompts_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--prompt"):
        parse_prompts([word])
