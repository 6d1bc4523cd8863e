"""The model card of a bundle: its YAML header, what its manifest records, and the commands that use it.

`fluxtalk align` writes a longer one from what its stages recorded, with the parts that are here.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from fluxtalk.artifacts.bundle import Manifest
from fluxtalk.datasets.data_name import HUGGING_FACE, parse_data_name
from fluxtalk.errors import UsageError
from fluxtalk.tokens import CONCAT, SHARED_KINDS

LIBRARY = "library_name: fluxtalk"
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


def header(sources: Mapping[str, str | None], data: str, license: str | None = None) -> Iterator[str]:
    """Yield the YAML that model hubs read; every value is spelled as JSON, which is YAML.

    Args:
        sources: modality to the name of its encoder; None if it is not known.
        data: name of the data set.
        license: name of a license, as hubs spell it (``apache-2.0``, ``other``).

    Raises:
        UsageError: the license is not such a name.
    """
    yield from ["---", LIBRARY, "pipeline_tag: feature-extraction"]
    if license is not None:
        yield _license_line(license)
    yield f"tags: {json.dumps(['fluxtalk', 'register-tokens', 'retrieval', *sources], ensure_ascii=False)}"
    known = {modality: source for modality, source in sources.items() if source is not None}
    if known:
        yield "encoders:"
    for modality, source in known.items():
        yield f"  {modality}: {json.dumps(source, ensure_ascii=False)}"
    yield f"data: {json.dumps(data, ensure_ascii=False)}"
    yield f"fluxtalk_version: {json.dumps(importlib.metadata.version('fluxtalk'))}"
    yield from ["---", ""]


def licensed(card: str, license: str | None) -> str:
    """Name the license in the header of a card, which had none; None leaves the card as it is.

    Raises:
        UsageError: the license is not a name that hubs know.
    """
    return card if license is None else card.replace(LIBRARY, f"{LIBRARY}\n{_license_line(license)}", 1)


def is_card(text: str) -> bool:
    """True if a text begins as every card of FluxTalk does."""
    return text.startswith(f"---\n{LIBRARY}\n")


def compose(manifest: Manifest, license: str | None = None) -> str:
    """Compose the card of a bundle from its manifest alone.

    Raises:
        UsageError: the license is not a name that hubs know.
    """
    told = manifest.training
    encoders = told.get("encoders", {})
    sources = {m: encoders.get(m) if isinstance(encoders, dict) else None for m in manifest.modalities}
    data = str(told.get("data", "unknown"))
    named = [f"- {m}: `{source}`" for m, source in sources.items() if source is not None]
    parts = [
        *header(sources, data, license),
        f"# {' and '.join(sources)}: aligned with FluxTalk",
        "",
        *introduction(manifest),
        *(["## Encoders", "", *named, "", "Their licenses hold for the weights in the bundle.", ""] if named else []),
        "## Data",
        "",
        f"`{data}`",
        "",
        *_recall(manifest),
        *_precisions(manifest),
        *use(data, manifest),
    ]
    return "\n".join(parts).rstrip() + "\n"


def introduction(manifest: Manifest) -> Iterator[str]:
    """Yield what a bundle is, in a paragraph."""
    size = f"{manifest.dim} times *k*" if manifest.summary == CONCAT else str(manifest.dim)
    yield (
        f"Frozen encoders of {', '.join(manifest.modalities)}, aligned by {manifest.num_register_tokens} register "
        f"tokens, of which the first {manifest.num_overlapping_tokens} are shared between modalities. Every number of "
        f"tokens *k* from 1 gives a usable embedding of {size} numbers, and is chosen at each call."
    )
    yield ""


def use(data: str, manifest: Manifest, compares_tokens: bool = False) -> Iterator[str]:
    """Yield how a folder with the card and its ``bundle`` is used; see `commands`."""
    yield from ["## Use", "", "```sh", "pip install 'fluxtalk[cpu,serve,search]'    # no PyTorch"]
    yield from commands(Path("bundle"), data, manifest, compares_tokens)
    yield from ["```", "", "```python", "import fluxtalk", "", 'embedder = fluxtalk.load("bundle")']
    modality = next(iter(manifest.modalities))
    yield f'vectors = embedder.embed("{modality}", items, k={manifest.num_overlapping_tokens})'
    yield from ["```", ""]


def commands(bundle: Path, data: str, manifest: Manifest, compares_tokens: bool = False) -> list[str]:
    """Spell the commands that index, search and serve a bundle.

    Args:
        data: name of the data set; a table's items are what is indexed.
        compares_tokens: the head was trained by late interaction, so that an index keeps tokens.
    """
    gallery, asked = _gallery_and_query(manifest)
    index = bundle.with_name(f"{gallery}.index")
    items = _items(data, gallery)
    query = '"..."' if manifest.modalities[asked].preprocess.get("kind") == "text" else "FILE"
    kind = " --kind tokens" * compares_tokens
    return [
        f"fluxtalk index build {_quoted(bundle)} {gallery} {items}{kind} -o {_quoted(index)}",
        f"fluxtalk index search {_quoted(index)} {asked} {query}",
        f"fluxtalk serve {_quoted(bundle)} --index {_quoted(index)}    # http://127.0.0.1:8000, a page at /",
    ]


def _recall(manifest: Manifest) -> Iterator[str]:
    """Yield the held-out recall of the first precision by k, if the export measured it."""
    name, entry = next(iter(manifest.precisions.items()))
    curve = entry.serving_curve
    if curve is None:
        return
    found = curve.recall
    kinds = [kind for kind in SHARED_KINDS if any(kind in by_kind for by_kind in found.recall.values())]
    yield from ["## Recall", ""]
    yield f"On held-out pairs, {name}, percent at {found.cutoff}; k is the number of tokens of both sides:"
    yield ""
    yield f"| direction | k | {' | '.join(kinds)} |"
    yield "|---|---:|" + "---:|" * len(kinds)
    for direction, by_kind in found.recall.items():
        for row, k in enumerate(found.counts):
            cells = [by_kind[kind][row][row] if kind in by_kind else None for kind in kinds]
            shown = " | ".join("" if cell is None else f"{100 * cell:.1f}" for cell in cells)
            yield f"| {direction.replace('->', ' to ')} | {k} | {shown} |"
    yield ""
    yield "Baselines are not recorded in a bundle; `fluxtalk align` writes a card that has them."
    yield ""


def _precisions(manifest: Manifest) -> Iterator[str]:
    yield from ["## Parity and precisions", "", "| precision | promised against eager PyTorch |", "|---|---:|"]
    for name, entry in manifest.precisions.items():
        label = f"{name} ({entry.method})" if entry.method else name
        yield f"| {label} | {entry.tolerance.promise()} |"
    yield ""
    yield "`fluxtalk-export verify bundle` replays the golden vectors on any machine, without PyTorch."
    yield ""


def _items(data: str, gallery: str) -> str:
    """Spell where the items of the index come from: the table, whose query is not a path, or files of the user's."""
    parsed = parse_data_name(data)
    if parsed is None or parsed.suffix in (".tar", HUGGING_FACE):
        return "ITEMS..."
    column = (parsed.query or {}).get(gallery, gallery)
    more = [] if column == gallery else ["--column", column]
    return shlex.join(["--input", parsed.path, *more, "--skip-empty"])


def _gallery_and_query(manifest: Manifest) -> tuple[str, str]:
    """Choose the modality to search in, which is not text if there is another, and the one to search with."""
    kinds = {name: entry.preprocess.get("kind") for name, entry in manifest.modalities.items()}
    gallery = next((name for name, kind in kinds.items() if kind != "text"), next(iter(kinds)))
    others = [name for name in kinds if name != gallery] or [gallery]
    return gallery, next((name for name in others if kinds[name] == "text"), others[0])


def _license_line(license: str) -> str:
    if not _LICENSE.fullmatch(license):
        raise UsageError(f"A license is a name as hubs spell it, such as apache-2.0 or other; got {license!r}.")
    return f"license: {license.lower()}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
