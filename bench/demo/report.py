"""Report of the demo: a table, two pictures, and commands to try next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bench.demo.albums import print_albums
from bench.query_sheet import pyplot

ALBUMS = "albums.json"


def print_report(root: Path, seconds: dict[str, float], wall: float) -> None:
    """Print the recall table, the pictures' places and what to try next."""
    results = json.loads((root / "results.json").read_text())
    click.secho(
        "\n== recall on 1,000 held-out characters, one image each, from raw input through the runtime", bold=True
    )
    header = "".join(f"{f'R@{c}':>9}" for c in next(iter(results["chance"].values())))
    for direction, by_k in results["recall"].items():
        click.echo(f"\n  {direction:<24}{header}")
        rows = [(f"k = {k}{_note(k, results)}", by_cutoff) for k, by_cutoff in by_k.items()]
        rows.append(("mean-pool + linear", results["baseline"][direction]))
        rows.append(("chance", results["chance"][direction]))
        for name, by_cutoff in rows:
            click.echo(f"  {name:<24}" + "".join(f"{100 * value:>7.1f} %" for value in by_cutoff.values()))
    best = results["recall"]["text->image"]
    unseen = results["recall_unseen"]["text->image"]
    click.echo("\n  text->image, all overlapping tokens:")
    click.echo(f"  without glyphs that look exactly like a training glyph: R@10 {100 * unseen['3']['10']:.1f} %")
    click.echo(f"  one token keeps {100 * best['1']['10'] / best['3']['10']:.0f} % of the Recall@10")
    print_albums(json.loads((root / ALBUMS).read_text()))
    click.secho("\n== where everything is", bold=True)
    for name, what in (
        ("queries.png", "six text queries and the images found"),
        ("recall.png", "Recall@10 against the number of tokens"),
        ("results.json", "every figure of single characters"),
        (ALBUMS, "every figure of albums"),
        ("stage1.pth", "the frozen encoders"),
        ("run", "the training run: METADATA.txt, metrics.jsonl, checkpoints"),
        ("bundle", "what a server needs: ONNX graphs, tokenizer, manifest, golden vectors"),
        ("gallery", "the held-out glyphs as picture files"),
        ("gallery.index", "their search index"),
    ):
        click.echo(f"  {root / name!s:<28} {what}")
    click.secho("\n== what to try next", bold=True)
    click.echo(f'  .venv/bin/fluxtalk index search {root}/gallery.index text "greek small letter omega with tonos"')
    click.echo(f"  .venv/bin/fluxtalk index search {root}/gallery.index image {root}/gallery/U+265B.png")
    click.echo(f'  .venv/bin/fluxtalk embed {root}/bundle text "black chess queen" -k 2 -o queen.npy')
    click.echo(f"  .venv/bin/fluxtalk inspect {root}/bundle")
    spent = "  ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    click.echo(f"\nseconds: {spent}; this time {wall:.0f} in all")


def draw_recall(results: dict[str, Any], path: Path) -> None:
    """Recall@10 against k, both directions, with baseline and chance."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    for direction, color in zip(results["recall"], ("#1f5aa6", "#c2571a"), strict=True):
        by_k = results["recall"][direction]
        axis.plot([int(k) for k in by_k], [100 * v["10"] for v in by_k.values()], "o-", color=color, label=direction)
        axis.axhline(
            100 * results["baseline"][direction]["10"],
            color=color,
            ls="--",
            lw=1,
            label=f"{direction}, mean-pool + linear",
        )
    axis.axhline(100 * results["chance"]["text->image"]["10"], color="0.5", ls=":", lw=1, label="chance")
    axis.set(xlabel="k, register tokens computed", ylabel="Recall@10 (%)", ylim=(0, 100), xticks=[int(k) for k in by_k])
    axis.set_title("1,000 held-out characters", loc="left", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    plt.close(figure)


def _note(k: str, results: dict[str, Any]) -> str:
    return " (adds the private one)" if int(k) == len(results["recall"]["text->image"]) else ""
