"""A bundle's graph as a TensorRT network, and the optimization profiles of its builder."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxtalk.artifacts.engine import Profile, TensorRecord
from fluxtalk.devices.tensorrt_api import TensorRT, short_reason
from fluxtalk.errors import BackendError
from fluxtalk.export.to_tensorrt.job import CompileJob
from fluxtalk.export.to_tensorrt.profiles import sizes_at


def parse_graph(api: TensorRT, job: CompileJob) -> tuple[Any, Any]:
    """Parse a graph into a strongly typed network; returns its builder and the network.

    Raises:
        BackendError: the library refuses the graph, or its inputs and outputs are not those of the manifest.
    """
    api.errors.clear()
    builder = api.trt.Builder(api.logger)
    network = builder.create_network(api.network_flags)
    parser = api.trt.OnnxParser(network, api.logger)
    _parse(api, parser, job)
    _check_tensors(job, *tensor_records(api, network))
    return builder, network


def add_profile(api: TensorRT, builder: Any, config: Any, job: CompileJob, sizes: Profile) -> Any:
    """Add an optimization profile to a builder's configuration, and return it.

    Raises:
        BackendError: the library does not take the profile.
    """
    profile = builder.create_optimization_profile()
    for spec in job.inputs:
        profile.set_shape(spec.name, *(sizes_at(sizes, spec.shape, which) for which in range(3)))
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"{api.name} does not take the profile {sizes} of {job.label}: {api.last_error()}.")
    return profile


def tensor_records(api: TensorRT, network: Any) -> tuple[list[TensorRecord], list[TensorRecord]]:
    """Records of a network's inputs and of its outputs."""
    return (
        [_tensor(api, network.get_input(i)) for i in range(network.num_inputs)],
        [_tensor(api, network.get_output(i)) for i in range(network.num_outputs)],
    )


def _tensor(api: TensorRT, tensor: Any) -> TensorRecord:
    return TensorRecord(tensor.name, np.dtype(api.trt.nptype(tensor.dtype)).name, [*tensor.shape])


def _parse(api: TensorRT, parser: Any, job: CompileJob) -> None:
    if parser.parse_from_file(str(job.graph)):
        return
    if not parser.num_errors:
        raise BackendError(f"{api.name} cannot read {job.graph}: {api.last_error()}; export the bundle again.")
    complaint = parser.get_error(0)
    if not complaint.node_operator():
        raise BackendError(
            f"{api.name} cannot read {job.graph}: {short_reason(complaint.desc())}; export the bundle again."
        )
    if complaint.code() == api.trt.ErrorCode.UNSUPPORTED_NODE:
        why = "it does not support that operator"
    else:
        # The first line of the description only repeats the node's name.
        why = short_reason(complaint.desc().partition("\n")[2] or complaint.desc())
    more = f" ({parser.num_errors - 1} more like it)" if parser.num_errors > 1 else ""
    cure = (
        "this kind of int8 is made for ONNX Runtime on the CPU: compile fp16 or bf16 instead"
        if job.precision == "int8"
        else f"write the encoder without it and export again, or serve {job.modality} with ONNX Runtime"
    )
    raise BackendError(
        f"{api.name} cannot take {job.label}: node {complaint.node_name() or complaint.node()!r}, operator "
        f"{complaint.node_operator()}: {why}{more}; {cure}."
    )


def _check_tensors(job: CompileJob, inputs: list[TensorRecord], outputs: list[TensorRecord]) -> None:
    expected = [
        TensorRecord(spec.name, spec.dtype, [size if isinstance(size, int) else -1 for size in spec.shape])
        for spec in job.inputs
    ]
    found, names = sorted(inputs, key=_name), [tensor.name for tensor in outputs]
    if (
        found != sorted(expected, key=_name)
        or names != job.outputs
        or any(tensor.dtype != "float32" for tensor in outputs)
    ):
        raise BackendError(
            f"The graph {job.graph} has the inputs {_described(inputs)} and the outputs {_described(outputs)}; its "
            f"bundle says {_described(expected)}, and {', '.join(job.outputs)} in float32: export it again."
        )


def _name(tensor: TensorRecord) -> str:
    return tensor.name


def _described(tensors: list[TensorRecord]) -> str:
    return ", ".join(f"{tensor.name} ({tensor.dtype}, {tensor.shape})" for tensor in tensors)
