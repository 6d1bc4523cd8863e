"""A Triton repository of every modality of a bundle; TensorRT plans are compiled on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.engine import read_plan
from fluxtalk.artifacts.files import atomic_folder, hash_file
from fluxtalk.devices.tensorrt_api import load_tensorrt
from fluxtalk.errors import BackendError, BundleError, UsageError
from fluxtalk.export.graph.to_onnx import graph_files
from fluxtalk.export.to_tensorrt.compile import build_engine
from fluxtalk.export.to_tensorrt.job import CompileJob, builder_options
from fluxtalk.export.to_tensorrt.profiles import profiles_of
from fluxtalk.export.to_triton.model import batched_inputs, with_batched_index, write_model
from fluxtalk.export.to_triton.options import TritonOptions


def write_repository(
    bundle: Bundle, output: Path, options: TritonOptions, precision: str | None = None, profiles: Sequence[str] = ()
) -> list[str]:
    """Write the repository of a bundle.

    Args:
        output: folder of the repository; must not exist, or be empty.
        precision: one of the bundle's; None takes its first.
        profiles: for the platform ``tensorrt``, in the spelling of `fluxtalk.export.to_tensorrt.profiles`.

    Returns:
        The models' names.

    Raises:
        BundleError: the folder exists and is not empty.
        UsageError: the bundle does not hold the precision, or profiles do not fit the bundle or the batch size.
        BackendError: plans were asked for, and TensorRT or the GPU is missing.
    """
    name = bundle.precision(precision)
    modalities = list(bundle.manifest.modalities)
    if profiles and options.platform != "tensorrt":
        raise UsageError("--profile is for compiled plans; add --platform tensorrt, or leave it out.")
    sizes = profiles_of(bundle, modalities, profiles)
    if options.platform == "tensorrt":
        for modality in modalities:
            # Refuses a wrong size before minutes are spent on compiling.
            options.batch_size(modality, sizes[modality])
    with atomic_folder(output, BundleError) as folder, tempfile.TemporaryDirectory() as scratch:
        names = []
        for modality in modalities:
            model = with_batched_index(onnx.load(bundle.graph(modality, name)))
            plan, compiled = None, []
            if options.platform == "tensorrt":
                graph_files(model, Path(scratch), f"{modality}.onnx")
                plan = _plan(bundle, modality, name, Path(scratch), sizes[modality])
                compiled = sizes[modality]
            names.append(write_model(folder, bundle, modality, model, options, plan, compiled))
    return names


def _plan(
    bundle: Bundle, modality: str, precision: str, scratch: Path, profiles: Sequence[dict[str, list[int]]]
) -> bytes:
    # Triton's backend runs plans of `tensorrt` only.
    api = load_tensorrt("tensorrt")
    graph = scratch / f"{modality}.onnx"
    inputs = batched_inputs(bundle, modality)
    job = CompileJob(modality, precision, graph, hash_file(graph), inputs, bundle.manifest.outputs, [*profiles])
    record = build_engine(api, job, builder_options(api), scratch / "engines")
    if record is None:
        raise BackendError(f"TensorRT made no plan of {modality}; run the command again.")
    return read_plan(scratch / "engines", record)
