"""Rows of the measurement: which things, and which voices training never hears.

``speech.csv`` says which modality a training thing lacks. Two tables come of it, with the same test things: in one they
are spoken by voices of training, in the other by voices that training never hears. Names of test things are never
heard in training either way.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.icons.speech import COLUMNS, TABLE, VOICES, speak_into
from bench.icons.tables import Row, write_table
from fluxtalk.console import progress
from fluxtalk.errors import DataError

HELD_OUT = ("en-us", "en-029+f4")
"""Voices that training never hears."""
KNOWN = tuple(voice for voice in VOICES if voice not in HELD_OUT)
KNOWN_TABLE, UNSEEN_TABLE = "sound.csv", "sound-unseen-voices.csv"
_MODALITIES = ("image", "text", "audio")


@dataclass(frozen=True)
class SoundPlan:
    """Things of each split, at most."""

    train: int = 1000
    validation: int = 120
    test: int = 250


def choose_rows(rows: Sequence[Row], plan: SoundPlan) -> list[Row]:
    """Take the first things of each split, and from training and validation the voices that are held out.

    A training thing that only those voices speak loses its sound, and goes if fewer than two modalities are left.
    """
    limits = {"train": plan.train, "validation": plan.validation, "test": plan.test}
    things: dict[str, list[Row]] = {}
    for row in rows:
        things.setdefault(row["id"], []).append(row)
    chosen: list[Row] = []
    for of_thing in things.values():
        split = of_thing[0]["split"]
        kept = of_thing[:1] if split == "test" else _without_held_out(of_thing)
        if kept and limits[split] > 0:
            limits[split] -= 1
            chosen += kept
    return chosen


def _without_held_out(rows: Sequence[Row]) -> list[Row]:
    kept = [row for row in rows if row["voice"] not in HELD_OUT]
    if kept:
        return kept
    silent = {**rows[0], "audio": ""}
    return [silent] if sum(bool(silent[modality]) for modality in _MODALITIES) > 1 else []


def with_voice(rows: Sequence[Row], voices: Sequence[str]) -> list[Row]:
    """Let the voices speak the rows in turn."""
    spoken = [(row, voices[index % len(voices)]) for index, row in enumerate(rows)]
    return [{**row, "voice": voice, "audio": f"speech/{voice}/{row['id']}.wav"} for row, voice in spoken]


def write_sound_tables(root: Path, plan: SoundPlan) -> dict[str, list[Row]]:
    """Write both tables beside ``speech.csv``, and speak what they name and is not there yet.

    Returns:
        Name of a table to its rows.

    Raises:
        BackendError: espeak-ng is not installed.
        DataError: there is no ``speech.csv`` in the folder.
    """
    if not (root / TABLE).is_file():
        raise DataError(f"{root / TABLE} does not exist; speak the names first: python -m bench.icons speech {root}.")
    with (root / TABLE).open(encoding="utf-8", newline="") as file:
        rows = choose_rows(list(csv.DictReader(file)), plan)
    test = [row for row in rows if row["split"] == "test"]
    learned = [row for row in rows if row["split"] != "test"]
    tables = {KNOWN_TABLE: [*learned, *with_voice(test, KNOWN)], UNSEEN_TABLE: with_voice(test, HELD_OUT)}
    for name, of_table in tables.items():
        for row in progress([row for row in of_table if row["audio"]], "speaking", unit="name"):
            speak_into(root / row["audio"], row["text"], row["voice"])
        write_table(root / name, of_table, COLUMNS)
    return tables
