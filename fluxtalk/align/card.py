"""The model card: README.md of the output folder, written from what the stages recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fluxtalk.align.export_and_verify import largest_differences
from fluxtalk.align.work import Work
from fluxtalk.artifacts.bundle import Manifest, read_bundle
from fluxtalk.artifacts.files import hash_file, write_atomically
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.artifacts.run import read_description
from fluxtalk.runtime import model_card

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
    parts = [
        *model_card.header(sources, evaluation["data"]),
        f"# {' and '.join(sources)}: aligned with FluxTalk",
        "",
        *model_card.introduction(manifest),
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
        *model_card.use(work.dataset.public_name, manifest, work.compares_tokens),
    ]
    return "\n".join(parts).rstrip() + "\n"


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
    yield "| precision | largest difference from eager PyTorch | smallest cosine | promised |"
    yield "|---|---:|---:|---:|"
    found = largest_differences(verification)
    for name, entry in manifest.precisions.items():
        label = f"{name} ({entry.method})" if entry.method else name
        if name in found:
            worst = found[name]
            yield f"| {label} | {worst['max_abs']:.1e} | {worst['min_cosine']:.6f} | {entry.tolerance.promise()} |"
        else:
            yield f"| {label} | not run on the machine of the export | | {entry.tolerance.promise()} |"
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
