"""One modality of a bundle as a model in a repository of NVIDIA Triton Inference Server.

::

    REPO/
      fluxtalk_text/
        config.pbtxt
        1/model.onnx         or model.plan
        warmup/...           inputs of the warm-up requests

Triton batches requests along the first dimension of *every* input, so the graph's ``token_index`` (k,) becomes
(batch, k), of which the graph reads the first row. Triton only batches requests of equal shapes, so all rows have the
same k, and clients that pad texts to a few lengths are batched more often.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from fluxtalk.arrays import Array, Arrays
from fluxtalk.artifacts.bundle import TOKEN_INDEX, Bundle
from fluxtalk.artifacts.engine import Profile
from fluxtalk.artifacts.files import write_atomically
from fluxtalk.export.graph.to_onnx import graph_files
from fluxtalk.export.to_triton.options import DEVICES, PLATFORMS, TritonOptions
from fluxtalk.runtime.golden import read_golden

_FILES = {"onnx": "model.onnx", "tensorrt": "model.plan"}
_ROW = "token_index_row"
_TYPES = {
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.FLOAT: "TYPE_FP32",
}


def with_batched_index(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph and give it ``token_index`` as (batch, k), of which it reads the first row."""
    batched = onnx.ModelProto()
    batched.CopyFrom(model)
    graph = batched.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == TOKEN_INDEX:
                node.input[place] = _ROW
    index = next(value for value in graph.input if value.name == TOKEN_INDEX)
    tokens = index.type.tensor_type.shape.dim[0]
    k: str | int = tokens.dim_param or tokens.dim_value
    index.CopyFrom(helper.make_tensor_value_info(TOKEN_INDEX, TensorProto.INT64, ["batch", k]))
    graph.initializer.append(helper.make_tensor("first_row", TensorProto.INT64, [], [0]))
    graph.node.insert(0, helper.make_node("Gather", [TOKEN_INDEX, "first_row"], [_ROW], name=_ROW, axis=0))
    return batched


def write_model(
    folder: Path,
    bundle: Bundle,
    modality: str,
    model: onnx.ModelProto,
    options: TritonOptions,
    plan: bytes | None,
    profiles: Sequence[Profile] = (),
) -> str:
    """Write one modality's model into a repository.

    Args:
        model: graph of `with_batched_index`; with ``plan``, only its inputs and outputs are used.
        plan: the compiled engine, for the platform ``tensorrt``.
        profiles: those of the plan, in its order; every instance uses all of them.

    Returns:
        The model's name.

    Raises:
        UsageError: the options ask for larger batches than the plan takes.
    """
    name = f"{options.prefix}_{modality}"
    version = folder / name / "1"
    version.mkdir(parents=True)
    if plan is not None:
        write_atomically(version / _FILES["tensorrt"], plan)
    else:
        graph_files(model, version, _FILES["onnx"])
    config = _config(name, model, options, options.batch_size(modality, profiles), len(profiles))
    config += _warmups(folder / name, bundle, modality, model, profiles)
    write_atomically(folder / name / "config.pbtxt", config)
    return name


def _config(name: str, model: onnx.ModelProto, options: TritonOptions, batch_size: int, profiles: int) -> str:
    group = f"    count: {options.instances}\n    kind: {DEVICES[options.device]}\n"
    if options.platform == "tensorrt":
        group = f"    count: {options.instances}\n    kind: KIND_GPU\n" + "".join(
            f'    profile: "{number}"\n' for number in range(profiles)
        )
    return (
        f"name: {json.dumps(name)}\n"
        f"platform: {json.dumps(PLATFORMS[options.platform])}\n"
        f"max_batch_size: {batch_size}\n"
        + "".join(_tensor("input", value) for value in model.graph.input)
        + "".join(_tensor("output", value) for value in model.graph.output)
        + f"dynamic_batching {{\n  max_queue_delay_microseconds: {options.queue_delay}\n}}\n"
        + f"instance_group [\n  {{\n{group}  }}\n]\n"
    )


def _tensor(role: str, value: onnx.ValueInfoProto) -> str:
    dims = _dims(value)
    return (
        f"{role} [\n  {{\n    name: {json.dumps(value.name)}\n    data_type: {_type(value)}\n"
        f"    dims: [ {', '.join(map(str, dims))} ]\n  }}\n]\n"
    )


def _type(value: onnx.ValueInfoProto) -> str:
    return _TYPES[value.type.tensor_type.elem_type]


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """Dimensions of one row, without the batch; -1 if a size is dynamic."""
    return [-1 if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]


def _warmups(folder: Path, bundle: Bundle, modality: str, model: onnx.ModelProto, profiles: Sequence[Profile]) -> str:
    """Warm-up requests of the first golden item for the smallest and the largest k, of each profile if there is one."""
    inputs, _ = read_golden(bundle, modality)
    rows: Arrays = {name: np.ascontiguousarray(array[:1]) for name, array in inputs.items()}
    if "mask" in rows:
        rows = _of_length(rows, max(1, int(rows["mask"].sum())))
    tokens = bundle.manifest.num_register_tokens
    text = ""
    for name, arrays, batch_size in _requests(rows, tokens, profiles):
        values = [value for value in model.graph.input if value.name in arrays]
        parts = "".join(_warmup_input(folder, value, arrays[value.name], name) for value in values)
        text += f'model_warmup [\n  {{\n    name: "{name}"\n    batch_size: {batch_size}\n{parts}  }}\n]\n'
    return text


def _requests(rows: Arrays, tokens: int, profiles: Sequence[Profile]) -> Iterator[tuple[str, Arrays, int]]:
    """Yield each warm-up request: its name, the inputs of one row, and the number of rows that Triton repeats it to."""
    for number, profile in enumerate(profiles or [None]):
        prefix = f"profile{number}." if len(profiles) > 1 else ""
        fitting: Arrays = rows
        batch_size, counts = 1, {1, tokens}
        if profile is not None:
            batch_size, counts = profile["batch"][0], {profile["k"][0], profile["k"][2]}
            if "mask" in rows:
                low, _, high = profile["length"]
                fitting = _of_length(rows, min(max(rows["mask"].shape[1], low), high))
        for k in sorted(counts):
            yield f"{prefix}k={k}", {**fitting, TOKEN_INDEX: np.arange(k, dtype=np.int64)[None]}, batch_size


def _of_length(rows: Arrays, length: int) -> Arrays:
    """Cut or pad rows (1, L, ...) to a length; padding is 0, and False in the mask."""
    return {
        name: np.pad(array[:, :length], [(0, 0), (0, max(0, length - array.shape[1]))] + [(0, 0)] * (array.ndim - 2))
        for name, array in rows.items()
    }


def _warmup_input(folder: Path, value: onnx.ValueInfoProto, array: Array, request: str) -> str:
    file = f"{value.name}.{request.replace('=', '')}"
    write_atomically(folder / "warmup" / file, array.tobytes())
    dims = ", ".join(map(str, array.shape[1:]))
    return (
        f"    inputs {{\n      key: {json.dumps(value.name)}\n      value {{\n        data_type: {_type(value)}\n"
        f"        dims: [ {dims} ]\n        input_data_file: {json.dumps(file)}\n      }}\n    }}\n"
    )
