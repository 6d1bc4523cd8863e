"""The build: packages, drawings, pictures, things, tables, and a record of all of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from bench.icons.drawings import LeftOut, read_drawings
from bench.icons.packages import RECORD, fetch_all, npm_is_there
from bench.icons.pictures import RENDERING, picture_path, rasterizer_is_there, render_all
from bench.icons.sets import EMOJI_SETS, EMOJI_TAGS, NPM_SETS, PYPI_SETS, DrawingSet, Package
from bench.icons.tables import TABLE, make_rows, read_members, write_table
from bench.icons.things import SPLITS, Picture, Thing, make_things, split_things, unite_copies
from fluxtalk.artifacts.files import hash_file, hash_json, write_json
from fluxtalk.errors import DataError

RECIPE = 2
"""Number of this way of reading names, grouping and splitting; another number builds again."""
DATASET = "dataset.json"


@dataclass(frozen=True)
class Plan:
    """Settings of a build."""

    source: str = "auto"
    """``npm``, ``pypi``, or ``auto``: npm if it is installed."""
    size: int = 64
    """Width and height of the pictures, in pixels. Emoji come with 64."""
    test: int = 1000
    """Things of the test split."""
    validation: int = 500
    subsets: tuple[int, ...] = (4500,)
    """Numbers of training things, for each of which a smaller table is written."""
    seed: int = 0


def choose_sets(source: str) -> tuple[tuple[DrawingSet, ...], dict[str, str]]:
    """Choose what can be fetched and drawn here.

    Returns:
        The sets, and those left out: name and registry to reason.
    """
    npm, svg = source == "npm" or (source == "auto" and npm_is_there()), rasterizer_is_there()
    left_out = {}
    chosen: list[DrawingSet] = []
    if not npm:
        why = "npm is not installed" if source == "auto" else f"--source {source}"
        left_out.update({_label(s): why for s in NPM_SETS})
    else:
        chosen += NPM_SETS if svg else EMOJI_SETS
    if not npm or not svg:
        chosen += [s for s in PYPI_SETS if svg or s.package.name == "qtawesome"]
    else:
        left_out.update({_label(s): "only where npm or resvg-py is missing" for s in PYPI_SETS})
    if not svg:
        sets = [*(NPM_SETS[len(EMOJI_SETS) :] if npm else ()), PYPI_SETS[0]]
        left_out.update({_label(s): "resvg-py, which draws SVG, is missing" for s in sets})
    return tuple(chosen), left_out


def _label(s: DrawingSet) -> str:
    return f"{s.name} ({s.package.name}, {s.package.registry})"


def build(root: Path, plan: Plan) -> dict[str, Any]:
    """Build the data set in a folder, doing again only what is not up to date.

    Returns:
        What ``dataset.json`` says.

    Raises:
        BackendError: a package could not be fetched.
        DataError: there are fewer things than the splits need.
    """
    started = time.monotonic()
    sets, sets_left_out = choose_sets(plan.source)
    packages = _packages(sets)
    fingerprint = hash_json(
        [RECIPE, RENDERING, asdict(plan), [p.folder for p in packages], [s.name for s in sets], sorted(sets_left_out)]
    )
    record = _up_to_date(root, fingerprint)
    if record is not None:
        return record
    for name, why in sets_left_out.items():
        click.echo(f"  left out: {name}: {why}")
    folders = fetch_all(packages, root / "packages")
    left_out: LeftOut = Counter()
    drawings = [drawing for s in sets for drawing in read_drawings(s, folders, left_out)]
    fetched = time.monotonic()
    hashes, failures = render_all(drawings, root, plan.size)
    drawn = time.monotonic()
    pictures = unite_copies([Picture(d, picture_path(d), h) for d, h in zip(drawings, hashes, strict=True) if h])
    contents = sorted({picture.path: picture.content for picture in pictures}.items())
    left_out["copies of a picture in the same style, whose names the first has too"] = len(pictures) - len(contents)
    things = make_things(pictures)
    splits = _split(things, plan)
    tables = write_tables(root, splits, plan.subsets)
    record = {
        "fingerprint": fingerprint,
        "plan": {**asdict(plan), "subsets": list(plan.subsets)},
        "sets": [_set_record(s, folders[s.package.folder], pictures) for s in sets],
        "counts": _counts(things, splits, tables),
        "left_out": {"sets": sets_left_out, "drawings": dict(left_out), "pictures": failures},
        "tables": {name: hash_file(root / name) for name in tables},
        "content_hash": hash_json([contents, [hash_file(root / name) for name in tables]]),
        "seconds": {
            "fetching": round(fetched - started, 1),
            "drawing": round(drawn - fetched, 1),
            "all": round(time.monotonic() - started, 1),
        },
    }
    write_json(root / DATASET, record)
    return record


def _packages(sets: Sequence[DrawingSet]) -> list[Package]:
    tags = [EMOJI_TAGS] if any(s in EMOJI_SETS for s in sets) else []
    return list(dict.fromkeys([s.package for s in sets] + tags))


def _up_to_date(root: Path, fingerprint: str) -> dict[str, Any] | None:
    """The record of a finished build of the same plan, whose tables are unchanged and pictures there."""
    path = root / DATASET
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record.get("fingerprint") != fingerprint:
        return None
    same = all((root / name).is_file() and hash_file(root / name) == sha for name, sha in record["tables"].items())
    if not same or not all((root / member.image).is_file() for member in read_members(root)):
        return None
    click.echo(f"{root} is up to date.")
    return record


def _split(things: Sequence[Thing], plan: Plan) -> dict[str, list[Thing]]:
    if len(things) <= plan.test + plan.validation:
        raise DataError(
            f"There are {len(things)} things, and the splits need {plan.test} for test, {plan.validation} for "
            "validation and at least one for training; name smaller numbers with --test and --validation."
        )
    return split_things(things, plan.test, plan.validation, plan.seed)


def write_tables(root: Path, splits: dict[str, list[Thing]], subsets: Sequence[int]) -> dict[str, int]:
    """Write the whole table, one for each split, and one for each subset of the training things.

    Subsets keep validation and test, so that figures compare.

    Returns:
        Name of each table to its number of rows.
    """
    rows = make_rows(splits)
    tables = {TABLE: rows, **{f"{s}.csv": [row for row in rows if row["split"] == s] for s in SPLITS}}
    for number in subsets:
        tables[f"icons-{number}.csv"] = make_rows({**splits, "train": splits["train"][:number]})
    for name, part in tables.items():
        write_table(root / name, part)
    return {name: len(part) for name, part in tables.items()}


def _set_record(s: DrawingSet, folder: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    fetched = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    styles = Counter({p.path: p.drawing.style for p in pictures if p.drawing.set == s}.values())
    return {
        "set": s.name,
        "package": s.package.name,
        "registry": s.package.registry,
        "version": s.package.version,
        "package_sha256": fetched["sha256"],
        "license": s.license,
        "shown": s.shown,
        "credit": s.credit,
        "pictures": dict(styles),
    }


def _counts(things: Sequence[Thing], splits: dict[str, list[Thing]], tables: dict[str, int]) -> dict[str, Any]:
    largest = sorted(things, key=lambda thing: -len(thing.paths))[:5]
    several = sum(len({p.drawing.style for p in thing.pictures}) > 1 for thing in things)
    return {
        "things": len(things),
        "pictures": sum(len(thing.paths) for thing in things),
        "things_in_several_styles": several,
        "things_by_split": {name: len(part) for name, part in splits.items()},
        "pictures_by_split": {name: sum(len(t.paths) for t in part) for name, part in splits.items()},
        "rows_by_table": tables,
        "largest_things": {thing.id: len(thing.paths) for thing in largest},
    }
