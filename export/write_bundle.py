"""Export of a training run to a bundle, which appears on disk only if parity and quality hold."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.bundle import (
    GOLDEN,
    OUTPUTS,
    QUALITY,
    Bundle,
    Manifest,
    ModalityEntry,
    PrecisionEntry,
    graph_name,
    read_bundle,
    write_manifest,
)
from fluxtalk.artifacts.files import atomic_folder, hash_file, write_atomically, write_json
from fluxtalk.artifacts.golden import GoldenVectors, golden_bytes
from fluxtalk.console import Log
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BundleError, IncompleteError, ParityError, QualityError, UsageError
from fluxtalk.export.graph.trace import TracedModality, trace
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.precision.quality import Scores
from fluxtalk.export.write_graphs import GraphWriter, check_longest
from fluxtalk.model.checkpoints.trained_run import TrainedRun
from fluxtalk.tokens import ATTENTION, OUTPUT_KINDS, TokenLayout, check_token_count

_STOP = "."
_ADVICE = "Leave out that --precision, name other --eval-data, or accept the loss with --allow-quality-loss"


def write_bundle(
    run: TrainedRun,
    dataset: PairDataset,
    output: Path,
    options: ExportOptions | None = None,
    log: Log = lambda _: None,
    eval_data: PairDataset | None = None,
) -> Bundle:
    """Export every modality of a run, hold each graph against eager PyTorch, and measure each precision's quality.

    Args:
        run: opened with its best head.
        dataset: its validation split gives the golden inputs, its training split calibrates int8.
        output: folder of the bundle; must not exist, or be empty.
        options: None takes the defaults.
        log: gets a line for each step and measurement.
        eval_data: quality is measured on its validation split; None takes ``dataset``.

    Raises:
        BundleError: the folder exists and is not empty.
        CheckpointError: an encoder would run code which nobody allowed to.
        DataError: the data set lacks a modality or has too few items.
        ParityError: a graph differs from eager PyTorch.
        QualityError: no precision that was asked for passes the quality gate, or could be measured.
        UsageError: an option does not fit the run, or an encoder cannot be exported.
        IncompleteError: a lower precision does not pass, while others do. The bundle is written without it; none of the
            other errors leaves anything behind.
    """
    options = options or ExportOptions()
    tokens = check_token_count(options.tokens, run.head.config.num_register_tokens, "this run")
    for part in run.stage1.modalities.values():
        part.require_trusted()  # of all, before the first is traced for seconds
    with atomic_folder(output, BundleError) as folder, tempfile.TemporaryDirectory() as scratch:
        traced: dict[str, TracedModality] = {}
        for modality, part in run.stage1.modalities.items():
            log(f"exporting {modality} ({part.spec.source})")
            calibrate = "int8" in options.precisions
            traced[modality] = trace(run, dataset, modality, tokens, options.opset, options.attention, calibrate)
        writer = GraphWriter(folder, Path(scratch), traced, options, tokens, log)
        reference = writer.float32_scores(run, eval_data or dataset)
        precisions = _precisions(writer, folder, traced, reference, options)
        longest = {m: part.longest for m, part in traced.items() if part.longest is not None}
        golden = GoldenVectors({m: part.golden for m, part in traced.items()}, longest)
        write_atomically(folder / GOLDEN, golden_bytes(golden))
        quality = {"data": (eval_data or dataset).public_name, "precisions": writer.reports, "refused": writer.refused}
        write_json(folder / QUALITY, quality)
        entries = {m: _entry(folder, m, part, list(precisions)) for m, part in traced.items()}
        write_manifest(folder, _manifest(run, dataset, folder, entries, precisions, options, tokens))
    bundle = read_bundle(output)
    if writer.refused:
        raise IncompleteError(
            f"{output} was written with {', '.join(precisions)}, and without "
            f"{'; '.join(f'{name}: {why.rstrip(_STOP)}' for name, why in writer.refused.items())}. {_ADVICE}."
        )
    return bundle


def _precisions(
    writer: GraphWriter,
    folder: Path,
    traced: Mapping[str, TracedModality],
    reference: Scores | None,
    options: ExportOptions,
) -> dict[str, PrecisionEntry]:
    """Write the precisions that pass; the others are refused, and float32 has to hold."""
    longest = {m: part.longest for m, part in traced.items() if part.longest is not None}
    promises = {m: part.noise.tolerance for m, part in traced.items()}
    written: dict[str, PrecisionEntry] = {}
    for name in options.precisions:
        try:
            entry = writer.write(name, reference)
            written[name] = check_longest(folder, longest, name, entry, promises, options.allow_quality_loss)
        except (QualityError, ParityError, UsageError) as error:
            if name == "fp32":
                raise
            writer.refuse(name, str(error))
    if not written:
        raise QualityError(
            "The quality gate does not hold for "
            f"{'; '.join(why.rstrip(_STOP) for why in writer.refused.values())}. {_ADVICE}."
        )
    return written


def _entry(folder: Path, modality: str, traced: TracedModality, precisions: Sequence[str]) -> ModalityEntry:
    config, files = traced.preprocess.to_parts()
    names = {name: f"{modality}.{name}" for name in files}
    for name, content in files.items():
        write_atomically(folder / names[name], content)
    graphs = {precision: graph_name(modality, precision) for precision in precisions}
    return ModalityEntry(graphs, traced.inputs, traced.max_length, config, names, traced.noise)


def _manifest(
    run: TrainedRun,
    dataset: PairDataset,
    folder: Path,
    entries: dict[str, ModalityEntry],
    precisions: dict[str, PrecisionEntry],
    options: ExportOptions,
    tokens: int,
) -> Manifest:
    config = run.head.config
    layout = config.layout.truncated(tokens)
    training: dict[str, Any] = {
        "data": dataset.public_name,
        "encoders": {name: part.spec.source for name, part in run.stage1.modalities.items()},
        **dataset.told(),
        "aggregation": config.aggregation,
        **run.head.progress,
    }
    if run.results is not None:
        training["test_recall"] = run.results["recall"]
    return Manifest(
        num_register_tokens=layout.num_register_tokens,
        num_overlapping_tokens=layout.num_overlapping_tokens,
        trained_register_tokens=config.num_register_tokens,
        dim=config.layout.dim,
        opset=options.opset,
        outputs=[*OUTPUTS, *[ATTENTION] * options.attention],
        precisions=precisions,
        modalities=entries,
        files={path.name: hash_file(path) for path in sorted(folder.iterdir())},
        golden=GOLDEN,
        stage1_hash=run.head.stage1_hash,
        head_hash=run.head.space_hash(),
        identity=run.head.identity.fields(),
        training=training,
        bytes_per_item=_bytes_per_item(layout),
        summary=layout.summary,
        nested_dims=list(layout.nested_dims),
    )


def _bytes_per_item(layout: TokenLayout) -> dict[str, Any]:
    """Bytes of one item's vectors in float32, by kind of output and k."""
    sizes = {output: {str(s.k): 4 * s.values_per_item for s in layout.selections(output)} for output in OUTPUT_KINDS}
    return {output: by_k for output, by_k in sizes.items() if by_k}
