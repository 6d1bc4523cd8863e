"""Results as tables: ratios first, milliseconds beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.markdown import markdown_table

HELD = 0.98
"""Share of nearest items that a reduced precision keeps if it is of equal quality, as the gate of an export asks of
bfloat16 (`fluxtalk.export.precision.quality.MAX_MOVED`)."""
_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "float32": {"reduced": False},
    f"reduced precision that keeps {HELD:.0%} of nearest items": {"reduced": True, "held": HELD},
    "any reduced precision": {"reduced": True},
}


def latency_table(content: dict[str, Any]) -> str:
    """Write the median milliseconds of every contender in every cell, the fastest of each class in bold."""
    paragraphs = []
    for modality in ("text", "image"):
        cells = [cell for cell in content["cells"] if cell.startswith(modality)]
        names = [name for name, one in content["contenders"].items() if one["modality"] == modality]
        if not cells:
            continue
        best = {
            (cell, reduced): min(
                (_median(content, cell, name) for name in names if content["contenders"][name]["reduced"] == reduced),
                default=math.inf,
            )
            for cell in cells
            for reduced in (False, True)
        }
        rows = []
        for name in names:
            one = content["contenders"][name]
            figures = [_median(content, cell, name) for cell in cells]
            marked = [
                f"**{ms:.1f}**" if ms == best[cell, one["reduced"]] else f"{ms:.1f}"
                for ms, cell in zip(figures, cells, strict=True)
            ]
            cosine = "" if one["cosine"] is None else f"{one['cosine']:.4f}"
            kept = "" if one["kept"] is None else f"{one['kept']:.1%}"
            rows.append([one["label"], *marked, cosine, kept, f"{one['first_s']:.1f}", one["resident_mib"]])
        shapes = [cell.partition(", ")[2] for cell in cells]
        paragraphs.append(markdown_table([modality, *shapes, "cosine", "nearest kept", "first call, s", "MiB"], rows))
    return "\n\n".join(paragraphs)


def ratio_table(content: dict[str, Any]) -> str:
    """Write how many times as fast ours is as the best peer of the same class, with the range over rounds."""
    rows = []
    for label, asked in _CLASSES.items():
        ratios = []
        for cell in content["cells"]:
            found = cell_ratio(content, cell, **asked)
            if found is None:
                continue
            ratio, low, high, ours, peer = found
            ratios.append(ratio)
            rows.append([f"{cell}, {label}", f"**{ratio:.2f}**", f"{low:.2f} to {high:.2f}", ours, peer])
        if ratios:
            mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
            rows.append([f"geometric mean, {label}", f"**{mean:.2f}**", "", "", ""])
    return markdown_table(["", "times as fast", "over rounds", "ours", "best peer"], rows)


def cell_ratio(
    content: dict[str, Any], cell: str, reduced: bool, held: float = 0.0
) -> tuple[float, float, float, str, str] | None:
    """Compare our fastest with the fastest peer of a class in a cell.

    Args:
        held: share of nearest items that a reduced precision has to keep, on either side.

    Returns:
        The median ratio of peer to ours over rounds, the least and the largest, and the labels of both; None if either
        side has nothing in that class.
    """
    by_side: dict[bool, list[str]] = {True: [], False: []}
    for name in content["cells"][cell]:
        one = content["contenders"][name]
        if one["reduced"] and (one["kept"] or 0.0) < held:
            continue
        # Ours may answer a peer of reduced precision in float32 too, but not the other way around.
        if one["reduced"] == reduced or (one["ours"] and reduced):
            by_side[one["ours"]].append(name)
    if not by_side[True] or not any(content["contenders"][name]["reduced"] == reduced for name in by_side[False]):
        return None
    ours, peer = (min(by_side[side], key=lambda name: _median(content, cell, name)) for side in (True, False))
    pairs = zip(content["cells"][cell][peer], content["cells"][cell][ours], strict=True)
    ratios = [theirs / mine for theirs, mine in pairs]
    labels = [content["contenders"][name]["label"].removeprefix("FluxTalk, ") for name in (ours, peer)]
    return statistics.median(ratios), min(ratios), max(ratios), labels[0], labels[1]


def server_table(content: dict[str, Any]) -> str:
    """Write requests per second, and the median and 99th percentile of milliseconds, by number of clients."""
    rows = []
    for name, one in content["servers"].items():
        cells: list[object] = [one["label"]]
        for load in content["load"].values():
            figures = [statistics.median(load[name][key]) for key in ("rate", "p50_ms", "p99_ms")]
            cells.append(f"{figures[0]:.0f} ({figures[1]:.1f} / {figures[2]:.1f})")
        rows.append([*cells, f"{one['ready_s']:.1f}", one["resident_mib"]])
    header: Sequence[str] = [f"{count} clients" if count != "1" else "1 client" for count in content["load"]]
    return markdown_table(["requests/s (p50 / p99, ms)", *header, "ready, s", "MiB"], rows)


def failed_lines(content: dict[str, Any]) -> str:
    """Name what did not run, and why."""
    lines = [f"- `{name}` did not run: {reason}" for name, reason in content["failed"].items()]
    return "\n".join(lines)


def _median(content: dict[str, Any], cell: str, name: str) -> float:
    return float(statistics.median(content["cells"][cell][name]))
