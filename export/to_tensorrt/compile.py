"""A bundle's graph compiled by TensorRT into an engine beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluxtalk.artifacts.engine import (
    RTX,
    EngineRecord,
    TensorRecord,
    engine_name,
    options_hash,
    read_plan,
    read_record,
    write_engine,
)
from fluxtalk.artifacts.files import hash_bytes, write_atomically
from fluxtalk.console import Log
from fluxtalk.devices.tensorrt_api import TensorRT
from fluxtalk.errors import ArtifactError, BackendError
from fluxtalk.export.to_tensorrt.job import BuilderOptions, CompileJob
from fluxtalk.export.to_tensorrt.network import add_profile, parse_graph, tensor_records
from fluxtalk.export.to_tensorrt.progress import BuildProgress, progress_monitor


def build_engine(
    api: TensorRT, job: CompileJob, options: BuilderOptions, folder: Path, log: Log = lambda _: None
) -> EngineRecord | None:
    """Compile a graph into a folder of engines, unless that engine is there and up to date.

    Args:
        folder: the bundle's `engines`; created if it is missing.
        log: gets a sentence if an engine that is there cannot be used.

    Returns:
        The record of the new engine; None if the engine was up to date.

    Raises:
        BackendError: the library refuses the graph.
    """
    if _is_up_to_date(api, job, options, folder, log):
        return None
    plan, inputs, outputs = _compile(api, job, options)
    record = EngineRecord(
        modality=job.modality,
        precision=job.precision,
        flavor=api.flavor,
        version=api.version,
        cuda_major=api.cuda_major,
        compute_capabilities=options.compute_capabilities,
        profiles=job.profiles,
        version_compatible=options.version_compatible,
        graph_hash=job.graph_hash,
        inputs=inputs,
        outputs=outputs,
        engine_hash=hash_bytes(plan),
        engine_bytes=len(plan),
    )
    write_engine(folder, plan, record)
    return record


def engine_file(api: TensorRT, job: CompileJob, options: BuilderOptions) -> str:
    """File name of the engine that `build_engine` writes."""
    return engine_name(
        job.modality,
        job.precision,
        api.flavor,
        api.version,
        options.compute_capabilities,
        options_hash(job.profiles, options.version_compatible, api.cuda_major),
    )


def _is_up_to_date(api: TensorRT, job: CompileJob, options: BuilderOptions, folder: Path, log: Log) -> bool:
    try:
        record = read_record(folder, engine_file(api, job, options))
        if record is None or record.graph_hash != job.graph_hash:
            return False
        read_plan(folder, record)
    except ArtifactError as error:
        log(str(error).partition("; build it again")[0] + "; building it again")
        return False
    return True


def _compile(
    api: TensorRT, job: CompileJob, options: BuilderOptions
) -> tuple[bytes, list[TensorRecord], list[TensorRecord]]:
    """Bytes of the plan, and the inputs and outputs of its network."""
    builder, network = parse_graph(api, job)
    config = builder.create_builder_config()
    _configure(api, config, options)
    for sizes in job.profiles:
        add_profile(api, builder, config, job, sizes)
    state = BuildProgress(job.label)
    monitor = progress_monitor(api.trt, state)
    config.progress_monitor = monitor
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        config.progress_monitor = None
        state.close()
    if state.canceled:
        raise KeyboardInterrupt
    if plan is None:
        raise BackendError(
            f"{api.name} cannot compile {job.label} for compute capability "
            f"{', '.join(options.compute_capabilities)}: {api.last_error()}; leave it out with --modality, --precision "
            "or --compute-capability, or serve it with ONNX Runtime."
        )
    _keep_timing_cache(config, options)
    return bytes(plan), *tensor_records(api, network)


def _configure(api: TensorRT, config: Any, options: BuilderOptions) -> None:
    # TF32, on by default, rounds the factors of float32 products to 10 bits, beyond the tolerance of fp32.
    config.clear_flag(api.trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(api.trt.BuilderFlag.VERSION_COMPATIBLE)
    if api.flavor == RTX:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, value in enumerate(options.compute_capabilities):
            number = getattr(api.trt.ComputeCapability, "SM" + value.replace(".", ""))
            if not config.set_compute_capability(number, index):
                raise BackendError(f"{api.name} does not take compute capability {value}: {api.last_error()}.")
    if options.timing_cache is not None:
        content = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, False):
            raise BackendError(
                f"The timing cache {options.timing_cache} was not made by {api.name} on this GPU: {api.last_error()}; "
                "name another file, or remove it."
            )


def _keep_timing_cache(config: Any, options: BuilderOptions) -> None:
    if options.timing_cache is not None:
        cache = config.get_timing_cache()
        write_atomically(options.timing_cache, bytes(cache.serialize()))
