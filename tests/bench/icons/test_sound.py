"""Spoken names: what training hears and never hears."""

from __future__ import annotations

from bench.icons.sound.tables import HELD_OUT, KNOWN, SoundPlan, choose_rows, with_voice
from bench.icons.tables import Row


def _row(thing: str, split: str, voice: str, lacks: str = "") -> Row:
    row = {"id": thing, "split": split, "image": f"{thing}.png", "text": thing, "audio": f"{thing}.wav", "voice": voice}
    return {**row, lacks: ""} if lacks else row


ROWS = [
    _row("bell", "train", KNOWN[0]),
    _row("bell", "train", HELD_OUT[0]),
    _row("fox", "train", HELD_OUT[0]),
    _row("fox", "train", HELD_OUT[1]),
    _row("heart", "train", HELD_OUT[0], "text"),
    _row("clip", "train", KNOWN[1]),
    _row("gear", "test", HELD_OUT[0]),
    _row("gear", "test", KNOWN[0]),
    _row("flag", "test", KNOWN[0]),
]


def test_training_never_hears_a_voice_that_is_held_out() -> None:
    learned = [row for row in choose_rows(ROWS, SoundPlan()) if row["split"] == "train"]
    # The fox keeps picture and name; the heart has only a picture left, and goes.
    assert [(row["id"], row["audio"]) for row in learned] == [("bell", "bell.wav"), ("fox", ""), ("clip", "clip.wav")]
    assert not any(row["audio"] for row in learned if row["voice"] in HELD_OUT)


def test_every_test_thing_is_there_once_in_known_and_in_unseen_voices() -> None:
    test = [row for row in choose_rows(ROWS, SoundPlan()) if row["split"] == "test"]
    known, unseen = with_voice(test, KNOWN), with_voice(test, HELD_OUT)
    assert [row["id"] for row in known] == [row["id"] for row in unseen] == ["gear", "flag"]
    assert [row["voice"] for row in unseen] == list(HELD_OUT)
    assert unseen[0]["audio"] == f"speech/{HELD_OUT[0]}/gear.wav"
    assert {row["voice"] for row in known} <= set(KNOWN)


def test_splits_hold_no_more_things_than_asked() -> None:
    chosen = choose_rows(ROWS, SoundPlan(train=1, test=1))
    assert {row["id"] for row in chosen} == {"bell", "gear"}
