"""Tables for docs/serving.md from the results, and the promises that were kept or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.markdown import markdown_table, replace_between

MARK, END = "<!-- measured by bench/server/cli.py -->", "<!-- end -->"
MIN_GOODPUT = 0.9
MAX_P99_OVER_P50 = 3.0
MAX_GROWTH_MIB = 16.0
MAX_DIFFERENCE = 1e-5
MAX_CROWD_MIB, MAX_LEFT_MIB = 1024.0, 64.0


def promises(results: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Each promise, whether it was kept, and the figures."""
    for name, rows in results["closed"].items():
        row = next(row for row in rows if row["concurrency"] == 32)
        ratio = row["p99_ms"] / row["p50_ms"]
        yield (
            f"{name}: p99 at 32 clients at most {MAX_P99_OVER_P50:g} x p50",
            ratio <= MAX_P99_OVER_P50,
            f"{ratio:.1f}",
        )
        others = {status for row in rows for status in row["statuses"]} - {"200"}
        yield f"{name}: every request of a closed loop is answered with 200", not others, ", ".join(others) or "yes"
    for name, row in results["overload"].items():
        others = set(row["statuses"]) - {"200", "429"}
        shown = ", ".join(f"{count} x {status}" for status, count in row["statuses"].items())
        yield f"{name}: under twice the capacity every request is answered with 200 or 429", not others, shown
        share = row["goodput_of_capacity"]
        yield (
            f"{name}: goodput under it at least {100 * MIN_GOODPUT:.0f} % of capacity",
            share >= MIN_GOODPUT,
            f"{100 * share:.0f} %",
        )
    row = results["neighbors"]
    yield (
        "beside harmful requests, every other is answered with 200",
        set(row["statuses"]) == {"200"},
        str(row["statuses"]),
    )
    difference = row["max_abs_difference"]
    yield "and with the same vectors", difference <= MAX_DIFFERENCE, f"{difference:.0e} apart"
    served = {status for found in row["harm"].values() for status in found}
    yield "harmful requests are answered, and never with 5xx", not served & {"500", "503", "504", "lost"}, str(served)
    row = results["drain"]
    yield (
        "after SIGTERM, what was accepted is answered, and the exit status is 0",
        not row["statuses"].get("lost") and not row["exit_status"],
        f"{row['statuses']}, exit status {row['exit_status']} after {row['ended_after_s']} s",
    )
    rows = results.get("crowds", ())
    if rows:
        others = {status for row in rows for status in row["statuses"]} - {"200"}
        yield "beside crowds, every request of a neighbor is answered with 200", not others, ", ".join(others) or "yes"
        largest, left = max(row["largest_mib"] for row in rows), rows[-1]["after_mib"] - rows[0]["after_mib"]
        yield f"memory beside crowds at most {MAX_CROWD_MIB:g} MiB", largest <= MAX_CROWD_MIB, f"{largest} MiB"
        # The neighbor alone comes first: its decoding processes and sessions stay.
        what = f"and at most {MAX_LEFT_MIB:g} MiB more after them than after the neighbor alone"
        yield what, left <= MAX_LEFT_MIB, f"{left:.1f} MiB"
    row = results["memory"]
    yield (
        f"memory grows by at most {MAX_GROWTH_MIB:g} MiB under load",
        row["growth_mib"] <= MAX_GROWTH_MIB,
        f"{row['growth_mib']} MiB in {row['seconds']} s, {row['largest_mib']} at most",
    )


def tables(results: Mapping[str, Any]) -> list[str]:
    """The tables, each under its title."""
    bare = results["bare"]
    closed = markdown_table(
        ["requests", "clients", "requests/s", "items/s", "of bare sessions", "p50, ms", "p99, ms", "server's cores"],
        [
            [
                name,
                row["concurrency"],
                f"{row['requests_per_s']:.0f}",
                f"{row['items_per_s']:.0f}",
                f"{100 * row['requests_per_s'] / bare[name]['session_per_s']:.0f} %",
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['server_cores']:.2f}",
            ]
            for name, rows in results["closed"].items()
            for row in rows
        ],
    )
    overload = markdown_table(
        ["requests", "offered/s", "answered/s", "of capacity", "p50, ms", "p99, ms", "429 at p99, ms", "statuses"],
        [
            [
                name,
                f"{row['offered_per_s']:.0f}",
                f"{row['goodput_per_s']:.0f}",
                f"{100 * row['goodput_of_capacity']:.0f} %",
                *(_shown(row[key]) for key in ("p50_ms", "p99_ms", "rejected_p99_ms")),
                ", ".join(f"{count} x {status}" for status, count in row["statuses"].items()),
            ]
            for name, row in results["overload"].items()
        ],
    )
    crowds = markdown_table(
        ["beside", "p50, ms", "p99, ms", "neighbor", "crowd", "largest, MiB", "after, MiB"],
        [
            [
                row["beside"],
                *(_shown(row[key]) for key in ("p50_ms", "p99_ms")),
                *(", ".join(f"{n} x {s}" for s, n in row[key].items()) for key in ("statuses", "crowd")),
                f"{row['largest_mib']:.0f}",
                f"{row['after_mib']:.0f}",
            ]
            for row in results.get("crowds", ())
        ],
    )
    kept = markdown_table(
        ["promise", "kept", "measured"],
        [[what, "yes" if holds else "**no**", shown] for what, holds, shown in promises(results)],
    )
    seconds = next(iter(results["overload"].values()))["seconds"]
    return [
        "A closed loop: so many clients, each of which waits for its answer. *Of bare sessions*: against one thread "
        "that calls nothing but the session, on ready arrays, a request's items as one batch:\n\n" + closed,
        f"An open loop: arrivals at twice the capacity for {seconds:g} s, which wait for nobody. Times are of what was "
        "answered with 200, from its arrival:\n\n" + overload,
        "A neighbor of four clients beside crowds that do one thing as fast as they can, and the server's memory "
        "meanwhile and 10 s later at most:\n\n" + crowds,
        "What was promised:\n\n" + kept,
    ]


def write_tables(docs: Path, results: Mapping[str, Any]) -> None:
    """Replace the text between the marks of a Markdown file."""
    bare = ", ".join(
        f"{name}: {found['session_per_s']:.0f} requests/s by bare sessions, {found['library_per_s']:.0f} by the library"
        for name, found in results["bare"].items()
    )
    where = (
        f"`make bench-server` on {results['architecture']}, {results['cores']} cores that the load generator shares, "
        f"no GPU, {results['date']}, load average {results['load_average_before']} before"
        f"{'; a short run' if results['quick'] else ''}. Encoders of the demo (1.1 and 0.8 million parameters), so the "
        f"server's own work is the larger part of most requests. In one thread without a server, {bare}. The generator "
        f"reaches {results['generator']['per_s']:.0f} requests/s of a server that does nothing."
    )
    replace_between(docs, MARK, END, [where, *tables(results)])


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f}"
