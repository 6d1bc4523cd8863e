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

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from fluxtalk.arrays import Array, Arrays
from fluxtalk.artifacts.bundle import TOKEN_INDEX, Bundle, TensorSpec
from fluxtalk.artifacts.engine import Profile
from fluxtalk.artifacts.files import write_atomically
from fluxtalk.export.graph.to_onnx import graph_files
from fluxtalk.export.to_triton.options import DEVICES, PLATFORMS, TritonOptions

_FILES = {"onnx": "model.onnx", "tensorrt": "model.plan"}
_ROW = "token_index_row"


def batched_inputs(bundle: Bundle, modality: str) -> list[TensorSpec]:
    """Inputs of `with_batched_index`: the manifest's, with ``token_index`` (batch, k)."""
    return [
        dataclasses.replace(spec, shape=["batch", *spec.shape]) if spec.name == TOKEN_INDEX else spec
        for spec in bundle.manifest.modalities[modality].inputs
    ]


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
        model: graph of `with_batched_index`; with ``plan``, only its outputs are used.
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
    inputs = batched_inputs(bundle, modality)
    config = _config(name, inputs, model, options, options.batch_size(modality, profiles), len(profiles))
    config += _warmups(folder / name, bundle, modality, inputs, profiles)
    write_atomically(folder / name / "config.pbtxt", config)
    return name


def _config(
    name: str,
    inputs: Sequence[TensorSpec],
    model: onnx.ModelProto,
    options: TritonOptions,
    batch_size: int,
    profiles: int,
) -> str:
    group = f"    count: {options.instances}\n    kind: {DEVICES[options.device]}\n"
    if options.platform == "tensorrt":
        group = f"    count: {options.instances}\n    kind: KIND_GPU\n" + "".join(
            f'    profile: "{number}"\n' for number in range(profiles)
        )
    return (
        f"name: {json.dumps(name)}\n"
        f"platform: {json.dumps(PLATFORMS[options.platform])}\n"
        f"max_batch_size: {batch_size}\n"
        + "".join(_tensor("input", spec.name, _type(spec), spec.shape) for spec in inputs)
        + "".join(_tensor("output", value.name, "TYPE_FP32", _sizes(value)) for value in model.graph.output)
        + f"dynamic_batching {{\n  max_queue_delay_microseconds: {options.queue_delay}\n}}\n"
        + f"instance_group [\n  {{\n{group}  }}\n]\n"
    )


def _tensor(role: str, name: str, type_name: str, shape: Sequence[str | int]) -> str:
    # Dimensions of one row, without the batch; -1 for a dynamic one.
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in shape[1:])
    return f"{role} [\n  {{\n    name: {json.dumps(name)}\n    data_type: {type_name}\n    dims: [ {dims} ]\n  }}\n]\n"


def _sizes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _type(spec: TensorSpec) -> str:
    """Triton's name of a type: ``TYPE_INT64``, ``TYPE_FP32``."""
    return f"TYPE_{spec.datatype}"


def _warmups(
    folder: Path, bundle: Bundle, modality: str, inputs: Sequence[TensorSpec], profiles: Sequence[Profile]
) -> str:
    """Warm-up requests of the first golden item for the smallest and the largest k, of each profile if there is one."""
    golden = bundle.golden.batch[modality].inputs
    rows: Arrays = {name: np.ascontiguousarray(array[:1]) for name, array in golden.items()}
    if "mask" in rows:
        rows = _of_length(rows, max(1, int(rows["mask"].sum())))
    tokens = bundle.manifest.num_register_tokens
    text = ""
    for name, arrays, batch_size in _requests(rows, tokens, profiles):
        parts = "".join(_warmup_input(folder, spec, arrays[spec.name], name) for spec in inputs)
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


def _warmup_input(folder: Path, spec: TensorSpec, array: Array, request: str) -> str:
    file = f"{spec.name}.{request.replace('=', '')}"
    write_atomically(folder / "warmup" / file, array.tobytes())
    dims = ", ".join(map(str, array.shape[1:]))
    return (
        f"    inputs {{\n      key: {json.dumps(spec.name)}\n      value {{\n        data_type: {_type(spec)}\n"
        f"        dims: [ {dims} ]\n        input_data_file: {json.dumps(file)}\n      }}\n    }}\n"
    )
