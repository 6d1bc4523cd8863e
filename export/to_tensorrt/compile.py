"""From an ONNX graph of a bundle to a compiled engine beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.engine import (
    EngineRecord,
    Profile,
    TensorRecord,
    engine_name,
    options_hash,
    read_plan,
    read_record,
    require_compute_capability,
    write_engine,
)
from fluxtalk.artifacts.files import hash_bytes, write_atomically
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.devices.tensorrt_api import NAMES, TensorRT, shortened
from fluxtalk.errors import ArtifactError, BackendError, UsageError
from fluxtalk.export.to_tensorrt.profiles import sizes_at
from fluxtalk.export.to_tensorrt.progress import BuildProgress, progress_monitor

PRECISIONS = ("fp32", "fp16", "bf16")
"""What is compiled unless something is named: int8 is made for the CPU."""
_RUNTIME_QUANTIZED = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_INPUT_TYPES = ("int64", "bool", "uint8", "float32")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What engines are built for, and how; `target_of` makes it."""

    compute_capabilities: list[str]
    version_compatible: bool = False
    timing_cache: Path | None = None
    """Read if it exists, and written after each build."""


@dataclass(frozen=True)
class Source:
    """One graph and the sizes that its engine is to take."""

    modality: str
    precision: str
    graph: Path
    graph_hash: str
    inputs: list[str]
    outputs: list[str]
    profiles: list[Profile]

    @property
    def label(self) -> str:
        """For people: ``text in fp16``."""
        return f"{self.modality} in {self.precision}"


def target_of(
    api: TensorRT,
    compute_capabilities: Sequence[str] = (),
    version_compatible: bool = False,
    timing_cache: Path | None = None,
) -> Target:
    """Check what a flavor is asked for.

    Args:
        compute_capabilities: such as ``8.9``; none takes that of the GPU here.

    Raises:
        UsageError: the flavor, or its version, does not support an option.
        BackendError: there is no GPU here and the flavor, or the lack of compute capabilities, asks for it.
    """
    for value in compute_capabilities:
        require_compute_capability(value)
    if api.flavor == "rtx":
        if timing_cache is not None:
            raise UsageError(
                f"--timing-cache does nothing in {api.name}, which chooses its kernels when it runs; leave it out, or "
                "ask for --flavor tensorrt."
            )
        if version_compatible:
            raise UsageError(
                f"--version-compatible does not exist in {api.name}; leave it out, or ask for --flavor tensorrt."
            )
    elif compute_capabilities:
        raise UsageError(
            f"--compute-capability belongs to --flavor rtx: {api.name} compiles for the GPU that it runs on; leave it "
            "out."
        )
    if version_compatible and not api.has_flag("VERSION_COMPATIBLE"):
        raise UsageError(f"--version-compatible does not exist in {api.name}; leave it out.")
    wanted = sorted(set(compute_capabilities), key=_numbers) or [_capability_here(api)]
    known = api.named_capabilities
    unknown = [value for value in wanted if value not in known] if api.flavor == "rtx" else []
    if unknown:
        raise UsageError(
            f"{api.name} compiles for compute capability {', '.join(known)}; got {', '.join(unknown)}: "
            "ask for --flavor tensorrt on such a GPU."
        )
    return Target(wanted, version_compatible, timing_cache)


def source_of(bundle: Bundle, modality: str, precision: str, profiles: Sequence[Profile]) -> Source:
    """A graph of a bundle.

    Raises:
        UsageError: the bundle does not hold the precision, or it is int8 whose scales are found while it runs.
    """
    graph = bundle.graph(modality, precision)
    operators = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    if not operators.isdisjoint(_RUNTIME_QUANTIZED):
        raise UsageError(
            f"TensorRT does not take {modality} in {precision}: this bundle's kind of it finds its scales while it "
            f"runs ({', '.join(sorted(operators.intersection(_RUNTIME_QUANTIZED)))}), on ONNX Runtime's CPU provider "
            f"alone; compile {', '.join(held(bundle)) or 'another precision'}."
        )
    manifest = bundle.manifest
    return Source(
        modality,
        precision,
        graph,
        bundle.graph_hash(modality, precision),
        manifest.modalities[modality].inputs,
        manifest.outputs,
        [*profiles],
    )


def held(bundle: Bundle) -> list[str]:
    """The precisions of a bundle that are compiled unless something is named."""
    return [precision for precision in bundle.manifest.precisions if precision in PRECISIONS]


def build_engine(
    api: TensorRT, source: Source, target: Target, folder: Path, say: Say = lambda _: None
) -> EngineRecord | None:
    """Compile a graph into a folder of engines, unless that engine is there and up to date.

    Args:
        folder: the bundle's `engines`; made where it is missing.
        say: told when an engine that is there cannot be used.

    Returns:
        The record of the new engine; None where nothing had to be done.

    Raises:
        BackendError: the library refuses the graph.
    """
    if _is_up_to_date(api, source, target, folder, say):
        return None
    plan, inputs, outputs = _compile(api, source, target)
    record = EngineRecord(
        modality=source.modality,
        precision=source.precision,
        flavor=api.flavor,
        version=api.version,
        cuda_major=api.cuda_major,
        compute_capabilities=target.compute_capabilities,
        profiles=source.profiles,
        version_compatible=target.version_compatible,
        graph_hash=source.graph_hash,
        inputs=inputs,
        outputs=outputs,
        engine_hash=hash_bytes(plan),
        engine_bytes=len(plan),
    )
    write_engine(folder, plan, record)
    return record


def name_of(api: TensorRT, source: Source, target: Target) -> str:
    """The file name of the engine that `build_engine` makes."""
    return engine_name(
        source.modality,
        source.precision,
        api.flavor,
        api.version,
        target.compute_capabilities,
        options_hash(source.profiles, target.version_compatible, api.cuda_major),
    )


def _is_up_to_date(api: TensorRT, source: Source, target: Target, folder: Path, say: Say) -> bool:
    try:
        record = read_record(folder, name_of(api, source, target))
        if record is None or record.graph_hash != source.graph_hash:
            return False
        read_plan(folder, record)
    except ArtifactError as error:
        say(str(error).partition("; build it again")[0] + "; building it again")
        return False
    return True


def parse_graph(api: TensorRT, source: Source) -> tuple[Any, Any]:
    """A builder of the library, and the strongly typed network of a graph.

    Raises:
        BackendError: the library refuses the graph, or it is not what its bundle says.
    """
    api.errors.clear()
    builder = api.trt.Builder(api.logger)
    network = builder.create_network(api.network_flags)
    parser = api.trt.OnnxParser(network, api.logger)
    _parse(api, parser, source)
    _require_names(source, *_tensors(api, network))
    return builder, network


def add_profile(api: TensorRT, builder: Any, network: Any, config: Any, source: Source, sizes: Profile) -> Any:
    """Give a builder's configuration one more optimization profile, and return it.

    Raises:
        BackendError: the library does not take it, or an input has a dynamic dimension that is no axis.
    """
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        axes = [
            size if size >= 0 else _axis(source, sizes, tensor.name, tensor.get_dimension_name(dimension))
            for dimension, size in enumerate(tensor.shape)
        ]
        profile.set_shape(tensor.name, *(sizes_at(sizes, axes, which) for which in range(3)))
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"{api.name} does not take the profile {sizes} of {source.label}: {api.last_error()}.")
    return profile


def _compile(api: TensorRT, source: Source, target: Target) -> tuple[bytes, list[TensorRecord], list[TensorRecord]]:
    """The plan's bytes, and the network's inputs and outputs."""
    builder, network = parse_graph(api, source)
    config = builder.create_builder_config()
    _configure(api, config, target)
    for sizes in source.profiles:
        add_profile(api, builder, network, config, source, sizes)
    state = BuildProgress(source.label)
    monitor = progress_monitor(api.trt, state)
    config.progress_monitor = monitor
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        config.progress_monitor = None
        state.close()
    if state.cancelled:
        raise KeyboardInterrupt
    if plan is None:
        raise BackendError(
            f"{api.name} cannot compile {source.label} for compute capability "
            f"{', '.join(target.compute_capabilities)}: {api.last_error()}; leave it out with --modality, --precision "
            "or --compute-capability, or serve it with ONNX Runtime."
        )
    _keep_timing_cache(config, target)
    return bytes(plan), *_tensors(api, network)


def _parse(api: TensorRT, parser: Any, source: Source) -> None:
    if parser.parse_from_file(str(source.graph)):
        return
    if not parser.num_errors:
        raise BackendError(f"{api.name} cannot read {source.graph}: {api.last_error()}; export the bundle again.")
    complaint = parser.get_error(0)
    if not complaint.node_operator():
        raise BackendError(
            f"{api.name} cannot read {source.graph}: {shortened(complaint.desc())}; export the bundle again."
        )
    if complaint.code() == api.trt.ErrorCode.UNSUPPORTED_NODE:
        why = "it does not support that operator there"
    else:
        # The first line only repeats the node's name.
        why = shortened(complaint.desc().partition("\n")[2] or complaint.desc())
    more = f" ({parser.num_errors - 1} more like it)" if parser.num_errors > 1 else ""
    cure = (
        "this kind of int8 is made for ONNX Runtime on the CPU: compile fp16 or bf16 instead"
        if source.precision == "int8"
        else f"write the encoder without it and export again, or serve {source.modality} with ONNX Runtime"
    )
    raise BackendError(
        f"{api.name} cannot take {source.label}: node {complaint.node_name() or complaint.node()!r}, operator "
        f"{complaint.node_operator()}: {why}{more}; {cure}."
    )


def _tensors(api: TensorRT, network: Any) -> tuple[list[TensorRecord], list[TensorRecord]]:
    """The inputs and the outputs."""
    return (
        [_tensor(api, network.get_input(i)) for i in range(network.num_inputs)],
        [_tensor(api, network.get_output(i)) for i in range(network.num_outputs)],
    )


def _tensor(api: TensorRT, tensor: Any) -> TensorRecord:
    return TensorRecord(tensor.name, np.dtype(api.trt.nptype(tensor.dtype)).name, [*tensor.shape])


def _require_names(source: Source, inputs: list[TensorRecord], outputs: list[TensorRecord]) -> None:
    names = [tensor.name for tensor in inputs], [tensor.name for tensor in outputs]
    if (
        sorted(names[0]) != sorted(source.inputs)
        or names[1] != source.outputs
        or any(tensor.dtype not in _INPUT_TYPES for tensor in inputs)
        or any(tensor.dtype != "float32" for tensor in outputs)
    ):
        raise BackendError(
            f"The graph {source.graph} has the inputs {_described(inputs)} and the outputs {_described(outputs)}; its "
            f"bundle says {', '.join(source.inputs)}, and {', '.join(source.outputs)} in float32: export it again."
        )


def _described(tensors: list[TensorRecord]) -> str:
    return ", ".join(f"{tensor.name} ({tensor.dtype})" for tensor in tensors)


def _configure(api: TensorRT, config: Any, target: Target) -> None:
    # On by default, and then float32 products are rounded to 10 bits: not what float32 promises.
    config.clear_flag(api.trt.BuilderFlag.TF32)
    if target.version_compatible:
        config.set_flag(api.trt.BuilderFlag.VERSION_COMPATIBLE)
    if api.flavor == "rtx":
        config.num_compute_capabilities = len(target.compute_capabilities)
        for index, value in enumerate(target.compute_capabilities):
            number = getattr(api.trt.ComputeCapability, "SM" + value.replace(".", ""))
            if not config.set_compute_capability(number, index):
                raise BackendError(f"{api.name} does not take compute capability {value}: {api.last_error()}.")
    if target.timing_cache is not None:
        content = target.timing_cache.read_bytes() if target.timing_cache.exists() else b""
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, False):
            raise BackendError(
                f"The timing cache {target.timing_cache} is not of {api.name} on this GPU: {api.last_error()}; "
                "name another file, or remove it."
            )


def _keep_timing_cache(config: Any, target: Target) -> None:
    if target.timing_cache is not None:
        cache = config.get_timing_cache()
        write_atomically(target.timing_cache, bytes(cache.serialize()))


def _axis(source: Source, sizes: Profile, tensor: str, name: str) -> str:
    if name not in sizes:
        raise BackendError(
            f"The graph {source.graph} has the input {tensor} of dynamic dimension {name!r}, and a bundle's are "
            f"{', '.join(sizes)}; export the bundle again."
        )
    return name


def _capability_here(api: TensorRT) -> str:
    here = compute_capability()
    if here is None:
        raise BackendError(
            f"{NAMES['tensorrt']} compiles on the GPU that will run the engine, and no NVIDIA GPU is found here; run "
            "this there, or name GPUs with --flavor rtx --compute-capability 8.9."
            if api.flavor == "tensorrt"
            else "No NVIDIA GPU is found here to compile for; name one with --compute-capability, such as 8.9 "
            f"({api.name} knows {', '.join(api.named_capabilities)})."
        )
    return here


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
