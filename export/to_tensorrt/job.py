"""Request of one engine: the graph, its sizes and the GPUs, checked before minutes are spent on compiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from fluxtalk.artifacts.bundle import Bundle, TensorSpec
from fluxtalk.artifacts.engine import RTX, Profile, require_compute_capability
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.devices.tensorrt_api import NAMES, TensorRT
from fluxtalk.errors import BackendError, UsageError

COMPILED_PRECISIONS = ("fp32", "fp16", "bf16")
"""Precisions that are compiled unless others are named: int8 is made for the CPU."""
_RUNTIME_QUANTIZED = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class CompileJob:
    """One engine to build: a graph, and the sizes that it has to take. `compile_job` makes it of a bundle."""

    modality: str
    precision: str
    graph: Path
    graph_hash: str
    """SHA-256 of the bundle's graph."""
    inputs: list[TensorSpec]
    """Inputs of the graph, as the manifest describes them."""
    outputs: list[str]
    profiles: list[Profile]
    """One for each optimization profile, in the engine's order."""

    @property
    def label(self) -> str:
        """Modality and precision for messages: ``text in fp16``."""
        return f"{self.modality} in {self.precision}"


@dataclass(frozen=True)
class BuilderOptions:
    """GPUs that engines are built for, and settings of the builder. `builder_options` checks them."""

    compute_capabilities: list[str]
    """Compute capabilities of the GPUs, such as ``8.9``."""
    version_compatible: bool = False
    """Lets newer versions of the same major version run the engine, by code that it carries."""
    timing_cache: Path | None = None
    """File of kernel timings: read if it exists, and written after each build."""


def compile_job(bundle: Bundle, modality: str, precision: str, profiles: Sequence[Profile]) -> CompileJob:
    """The job of one graph of a bundle.

    Raises:
        UsageError: the bundle does not hold the precision, or it is int8 with scales that are computed at run time.
    """
    graph = bundle.graph(modality, precision)
    operators = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    if not operators.isdisjoint(_RUNTIME_QUANTIZED):
        raise UsageError(
            f"TensorRT does not take {modality} in {precision}: this bundle's int8 computes its scales at run time "
            f"({', '.join(sorted(operators.intersection(_RUNTIME_QUANTIZED)))}), in ONNX Runtime's CPU provider only; "
            f"compile {', '.join(default_precisions(bundle)) or 'another precision'}."
        )
    manifest = bundle.manifest
    return CompileJob(
        modality,
        precision,
        graph,
        bundle.graph_hash(modality, precision),
        manifest.modalities[modality].inputs,
        manifest.outputs,
        [*profiles],
    )


def default_precisions(bundle: Bundle) -> list[str]:
    """Precisions of a bundle that are compiled unless others are named."""
    return [precision for precision in bundle.manifest.precisions if precision in COMPILED_PRECISIONS]


def builder_options(
    api: TensorRT,
    compute_capabilities: Sequence[str] = (),
    version_compatible: bool = False,
    timing_cache: Path | None = None,
) -> BuilderOptions:
    """Check options against a flavor and the GPU here.

    Args:
        compute_capabilities: such as ``8.9``; none stands for the GPU here.

    Raises:
        UsageError: the flavor, or its version, lacks an option.
        BackendError: no compute capability is given and there is no GPU here.
    """
    for value in compute_capabilities:
        require_compute_capability(value)
    if api.flavor == RTX:
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
            f"--compute-capability belongs to --flavor tensorrt-rtx: {api.name} compiles for the GPU that it runs on; "
            "leave it out."
        )
    if version_compatible and not api.has_flag("VERSION_COMPATIBLE"):
        raise UsageError(f"--version-compatible does not exist in {api.name}; leave it out.")
    wanted = sorted(set(compute_capabilities), key=_numbers) or [_capability_here(api)]
    known = api.named_capabilities
    unknown = [value for value in wanted if value not in known] if api.flavor == RTX else []
    if unknown:
        raise UsageError(
            f"{api.name} compiles for compute capability {', '.join(known)}; got {', '.join(unknown)}: "
            "ask for --flavor tensorrt on such a GPU."
        )
    return BuilderOptions(wanted, version_compatible, timing_cache)


def _capability_here(api: TensorRT) -> str:
    here = compute_capability()
    if here is None:
        raise BackendError(
            f"{NAMES['tensorrt']} compiles on the GPU that will run the engine, and no NVIDIA GPU is found here; run "
            "this there, or name GPUs with --flavor tensorrt-rtx --compute-capability 8.9."
            if api.flavor == "tensorrt"
            else "No NVIDIA GPU is found here to compile for; name one with --compute-capability, such as 8.9 "
            f"({api.name} knows {', '.join(api.named_capabilities)})."
        )
    return here


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
