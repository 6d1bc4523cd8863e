"""Spoken names: the things of a data set in three modalities, with pairs missing at random in training.

espeak-ng, a Debian package, speaks the names. Each thing has one picture and one name here, in several voices.
"""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.icons.tables import Member, Row, read_members, write_table
from fluxtalk.console import progress
from fluxtalk.errors import BackendError

COLUMNS = ("id", "split", "image", "text", "audio", "voice", "style", "shown")
TABLE = "speech.csv"
RATE = 16_000
"""Samples per second of the sound files."""
VOICES = ("en-us", "en-us+f3", "en-gb", "en-gb+f2", "en-gb-scotland+m3", "en-gb-x-rp+m7", "en-029+f4", "en-gb-x-gbclan")
"""Voices of espeak-ng: accents and, after the plus, speakers."""
_MODALITIES = ("image", "text", "audio")


@dataclass(frozen=True)
class SpeechPlan:
    """Numbers of things and voices, and the share that is missing."""

    train: int = 2000
    """Things of each split, at most."""
    validation: int = 250
    test: int = 500
    voices: int = 2
    """Voices in which each thing is spoken, drawn from `VOICES`."""
    missing: float = 0.3
    """Share of the training things that lack one modality, drawn at random. Validation and test lack none."""
    seed: int = 0


def require_espeak() -> str:
    """Find espeak-ng.

    Raises:
        BackendError: it is not installed.
    """
    found = shutil.which("espeak-ng")
    if found is None:
        raise BackendError("Spoken names need espeak-ng, which is not on PATH; apt-get install espeak-ng.")
    return found


def speak(text: str, voice: str) -> bytes:
    """Speak a text, as a WAV file of 16 kHz, mono, 16 bits.

    Raises:
        BackendError: espeak-ng is not installed, or does not know the voice.
    """
    import numpy as np
    import soundfile
    import soxr

    command = [require_espeak(), "-v", voice, "--stdout", "--", text]
    done = subprocess.run(command, capture_output=True, timeout=60)
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip()
        raise BackendError(f"espeak-ng could not speak {text!r} as {voice} ({said or f'status {done.returncode}'}).")
    # Its header gives no length, because it was written to a pipe: what follows it is sound.
    header = 44
    rate = int.from_bytes(done.stdout[24:28], "little")
    samples = np.frombuffer(done.stdout[header : len(done.stdout) // 2 * 2], dtype="<i2").astype(np.float32) / 32768
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(samples, rate, RATE), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def speak_into(path: Path, text: str, voice: str) -> None:
    """Speak a text into a WAV file, if it is not there yet.

    Raises:
        BackendError: espeak-ng is not installed, or does not know the voice.
    """
    if not path.is_file():
        # Whole or not at all, but not synced: thousands of small files can be spoken again.
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(speak(text, voice))
        part.replace(path)


def choose(members: Sequence[Member], plan: SpeechPlan) -> list[Member]:
    """Take the first things of each split in the table's order (which is shuffled), with one picture each."""
    pictures: dict[str, list[Member]] = {}
    for member in members:
        pictures.setdefault(member.thing, []).append(member)
    counts = {"train": plan.train, "validation": plan.validation, "test": plan.test}
    chosen = []
    for thing, of_thing in pictures.items():
        split = of_thing[0].split
        if counts[split] > 0:
            counts[split] -= 1
            chosen.append(random.Random(f"{plan.seed}:picture:{thing}").choice(of_thing))
    return chosen


def make_rows(members: Sequence[Member], plan: SpeechPlan) -> list[Row]:
    """One row per thing and voice. A thing that lacks a modality has an empty cell for it in all its rows."""
    rows = []
    for member in members:
        source = random.Random(f"{plan.seed}:speech:{member.thing}")
        voices = source.sample(VOICES, min(plan.voices, len(VOICES)))
        lacks = source.random() < plan.missing and member.split == "train"
        missing = source.choice(_MODALITIES) if lacks else ""
        for voice in voices[: 1 if missing == "audio" else None]:
            row = {
                "id": member.thing,
                "split": member.split,
                "image": member.image,
                "text": member.name,
                "audio": f"speech/{voice}/{member.thing}.wav",
                "voice": voice,
                "style": member.style,
                "shown": "yes" if member.shown else "no",
            }
            rows.append({**row, missing: ""} if missing else row)
    return rows


def write_speech(root: Path, plan: SpeechPlan) -> tuple[Path, list[Row]]:
    """Speak what is not there yet, and write ``speech.csv`` beside the data set's tables.

    Raises:
        BackendError: espeak-ng is not installed.
        DataError: there is no data set in ``root``.
    """
    require_espeak()
    members = {member.thing: member for member in choose(read_members(root), plan)}
    rows = make_rows(list(members.values()), plan)
    for row in progress([row for row in rows if row["audio"]], "speaking", unit="name"):
        speak_into(root / row["audio"], members[row["id"]].name, row["voice"])
    write_table(root / TABLE, rows, COLUMNS)
    return root / TABLE, rows
