"""The model card: README.md of the output folder, written from what the stages recorded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fluxtalk
from fluxtalk.align.export_and_verify import largest_differences
from fluxtalk.align.work import Work
from fluxtalk.artifacts.bundle import Manifest, read_bundle
from fluxtalk.artifacts.files import hash_file, write_atomically
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.artifacts.run import read_description
from fluxtalk.datasets.data_name import parse_data_name
from fluxtalk.tokens import CONCAT

CUTOFFS = ("1", "5", "10")
"""Cut-offs of recall in the tables."""


def write(work: Work) -> dict[str, Any]:
    """Write the card; one that was edited by hand is kept beside it."""
    path = work.folder.card
    if path.is_file() and hash_file(path) != work.stages["card"].outputs.get("card"):
        kept = path.with_name("README.edited.md")
        path.replace(kept)
        work.say(f"{path} was edited by hand; it is kept as {kept}")
    write_atomically(path, text(work))
    return {"card": hash_file(path)}


def written(work: Work) -> bool:
    """Return whether there is a card; edits are the user's."""
    return work.folder.card.is_file()


def text(work: Work) -> str:
    """Compose the card."""
    evaluation = read_object(work.folder.evaluation)
    verification = read_object(work.folder.verification)
    manifest = read_bundle(work.folder.bundle, check_hashes=False).manifest
    # Names of folders and files without their paths, as the checkpoint keeps them.
    sources = {name: part.spec.source for name, part in work.stage1.modalities.items()}
    size = f"{manifest.dim} times *k*" if manifest.summary == CONCAT else str(manifest.dim)
    parts = [
        *_header(sources, evaluation["data"]),
        f"# {' and '.join(sources)}: aligned with FluxTalk",
        "",
        f"Frozen encoders of {', '.join(sources)}, aligned by {manifest.num_register_tokens} register tokens, of which "
        f"the first {manifest.num_overlapping_tokens} are shared between modalities. Every number of tokens *k* from 1 "
        f"gives a usable embedding of {size} numbers, and is chosen at each call.",
        "",
        "## Encoders",
        "",
        "| modality | encoder | features of |",
        "|---|---|---:|",
        *[f"| {m} | `{source}` | {work.stage1.modalities[m].spec.dim} numbers |" for m, source in sources.items()],
        "",
        "Their weights are inside the bundle: their licenses hold for it too.",
        "",
        *_data(work, evaluation),
        *_recall(evaluation),
        *_parity(work, verification, manifest),
        *_training(work),
        *_use(work, manifest),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _header(sources: Mapping[str, str], data: str) -> Iterator[str]:
    """Yield the YAML that model hubs read; every value is spelled as JSON, which is YAML."""
    yield from ["---", "library_name: fluxtalk", "pipeline_tag: feature-extraction"]
    yield f"tags: {json.dumps(['fluxtalk', 'register-tokens', 'retrieval', *sources], ensure_ascii=False)}"
    yield "encoders:"
    for modality, source in sources.items():
        yield f"  {modality}: {json.dumps(source, ensure_ascii=False)}"
    yield f"data: {json.dumps(data, ensure_ascii=False)}"
    yield f"fluxtalk_version: {json.dumps(fluxtalk.__version__)}"
    yield from ["---", ""]


def _data(work: Work, evaluation: Mapping[str, Any]) -> Iterator[str]:
    yield from ["## Data", "", f"`{evaluation['data']}`:", ""]
    yield f"| split | ids | {' | '.join(work.stage1.modalities)} |"
    yield "|---|---:|" + "---:|" * len(work.stage1.modalities)
    for name, split in work.dataset.splits.items():
        if split.ids:
            counts = [f"{len(split.items[m]):,}" for m in work.stage1.modalities]
            yield f"| {name} | {len(split.ids):,} | {' | '.join(counts)} |"
    yield ""
    if work.dataset.left_out is not None:
        yield f"{work.dataset.left_out.sentence()}: `{work.folder.bad_items.name}` lists them."
        yield ""


def recall_rows(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield direction, name and recall in percent at 1, 5 and 10: by k, then the baselines and chance.

    Args:
        scores: one split of evaluation.json.
    """
    for direction, by_k in scores["recall"].items():
        rows = [(f"k = {k}", by_cutoff) for k, by_cutoff in by_k.items() if int(k) <= scores["overlapping_tokens"]]
        rows += [(name, recall[direction]["1"]) for name, recall in scores["baselines"].items()]
        for name, by_cutoff in [*rows, ("chance", scores["chance"][direction])]:
            cells = [f"{100 * by_cutoff[cutoff]:.1f}" if cutoff in by_cutoff else "" for cutoff in CUTOFFS]
            yield direction.replace("->", " to "), name, cells


def _recall(evaluation: Mapping[str, Any]) -> Iterator[str]:
    yield from ["## Recall", ""]
    for split in reversed(evaluation["splits"]):
        scores = evaluation["splits"][split]
        yield f"On the {split} split ({scores['ids']:,} ids), percent; k is the number of tokens:"
        yield ""
        yield f"| direction | | {' | '.join(f'R@{cutoff}' for cutoff in CUTOFFS)} |"
        yield "|---|---|" + "---:|" * len(CUTOFFS)
        yield from (f"| {direction} | {name} | {' | '.join(cells)} |" for direction, name, cells in recall_rows(scores))
        yield ""
    yield "Baselines see the same features, batches, loss and schedule. The head was chosen by the validation split."
    yield ""


def _parity(work: Work, verification: dict[str, Any], manifest: Manifest) -> Iterator[str]:
    yield from ["## Parity and precisions", ""]
    yield "| precision | largest difference from eager PyTorch | smallest cosine | promised at most |"
    yield "|---|---:|---:|---:|"
    found = largest_differences(verification)
    for name, entry in manifest.precisions.items():
        label = f"{name} ({entry.method})" if entry.method else name
        if name in found:
            worst = found[name]
            yield f"| {label} | {worst['max_abs']:.1e} | {worst['min_cosine']:.6f} | {entry.tolerance.max_abs:.0e} |"
        else:
            yield f"| {label} | not run on the machine of the export | | {entry.tolerance.max_abs:.0e} |"
    yield ""
    if "fp32" in manifest.precisions:
        for modality, graph in manifest.modalities.items():
            yield f"- {modality}, ONNX Runtime on a CPU: {graph.float32.line()}"
        yield ""
    refused = work.recorded("export", "refused") or []
    if refused:
        yield f"Asked for and refused by the quality gate: {', '.join(refused)}."
        yield ""
    yield "`fluxtalk-export verify bundle` replays the golden vectors on any machine, without PyTorch."
    yield ""


def _training(work: Work) -> Iterator[str]:
    run = read_description(work.folder.run.root)
    options = run.options
    yield from ["## Training", ""]
    yield (
        f"Recipe `{options['recipe']}`: {run.info.steps:,} steps of {run.info.global_batch:,} pairs in "
        f"{options['epochs']} epochs, learning rate {options['learning_rate']:g}, dropout {options['dropout']:g} in "
        f"the head, {options['feature_dropout']:g} on numbers and {options['token_dropout']:g} on vectors of the "
        f"features, seed {options['seed']}; {run.info.parameters:,} parameters, on {run.info.device}. All options: "
        "`run/run.json`."
    )
    yield ""


def _use(work: Work, manifest: Manifest) -> Iterator[str]:
    yield from ["## Use", "", "```sh", "pip install 'fluxtalk[cpu,serve,search]'    # no PyTorch"]
    yield from commands(Path("bundle"), work.dataset.public_name, manifest)
    yield from ["```", "", "```python", "import fluxtalk", "", 'embedder = fluxtalk.load("bundle")']
    modality = next(iter(manifest.modalities))
    yield f'vectors = embedder.embed("{modality}", items, k={manifest.num_overlapping_tokens})'
    yield from ["```", ""]


def commands(bundle: Path, data: str, manifest: Manifest) -> list[str]:
    """Spell the commands that index, search and serve a bundle.

    Args:
        data: name of the data set; a table's items are what is indexed.
    """
    gallery, asked = _gallery_and_query(manifest)
    index = bundle.with_name(f"{gallery}.index")
    items = _items(data, gallery)
    query = '"..."' if manifest.modalities[asked].preprocess.get("kind") == "text" else "FILE"
    return [
        f"fluxtalk index build {_quoted(bundle)} {gallery} {items} -o {_quoted(index)}",
        f"fluxtalk index search {_quoted(index)} {asked} {query}",
        f"fluxtalk serve {_quoted(bundle)} --index {_quoted(index)}    # http://127.0.0.1:8000, a page at /",
    ]


def _items(data: str, gallery: str) -> str:
    """Spell where the items of the index come from: the table, whose query is not a path, or files of the user's."""
    parsed = parse_data_name(data)
    if parsed is None or parsed.suffix == ".tar":
        return "ITEMS..."
    column = (parsed.query or {}).get(gallery, gallery)
    more = [] if column == gallery else ["--column", column]
    return shlex.join(["--input", parsed.path, *more, "--skip-empty"])


def _gallery_and_query(manifest: Manifest) -> tuple[str, str]:
    """Choose the modality to search in, which is not text if there is another, and the one to search with."""
    kinds = {name: entry.preprocess.get("kind") for name, entry in manifest.modalities.items()}
    gallery = next((name for name, kind in kinds.items() if kind != "text"), next(iter(kinds)))
    others = [name for name in kinds if name != gallery]
    return gallery, next((name for name in others if kinds[name] == "text"), others[0])


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
