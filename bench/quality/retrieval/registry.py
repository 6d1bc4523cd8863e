"""Every task by name, from where its data are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.quality.retrieval.glyph_tasks import glyph_albums, glyphs
from bench.quality.retrieval.icon_tasks import read_icons
from bench.quality.retrieval.tasks import Task
from fluxtalk.console import option
from fluxtalk.datasets import default_cache_dir

TASKS = ("glyph-albums", "glyphs", "icons", "icon-albums", "icon-scenes")


def tasks(
    icons: Path | None = None,
    icons_stage1: Path | None = None,
    cache_dir: str | None = None,
    characters: int | None = None,
) -> dict[str, Callable[[], Task]]:
    """Name the tasks whose data are there: those on icons need a data set and a stage 1 checkpoint."""
    cache = default_cache_dir(cache_dir)
    known: dict[str, Callable[[], Task]] = {
        "glyph-albums": lambda: glyph_albums(cache, characters),
        "glyphs": lambda: glyphs(cache, characters),
    }
    if icons is not None and icons_stage1 is not None:
        known |= read_icons(icons, icons_stage1, cache).tasks()
    return known


def task_options(command: Any) -> Any:
    """Add the options that say where the tasks' data are."""
    places = click.Path(path_type=Path)
    for name, kind, text in (
        ("characters", click.IntRange(min=8), "Characters of each split of glyphs, for a smoke test.  [default: all]"),
        ("cache-dir", None, "Cache of renderings and features.  [default: ~/.cache/fluxtalk]"),
        ("icons-stage1", places, "Stage 1 checkpoint of the encoders that read the icons."),
        ("icons", places, "Data set of python -m bench.icons build; without it, tasks on icons are left out."),
    ):
        command = option(f"--{name}", default=None, type=kind, help=text)(command)
    return command
