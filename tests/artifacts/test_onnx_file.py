"""Graphs of strangers: where their tensors say that their bytes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fluxtalk.artifacts.onnx_file import validate_onnx_file
from fluxtalk.errors import BundleError

WEIGHTS = "g.onnx.data"


def external(**entries: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(tensor: TensorProto, where: str = "initializer") -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    if where == "initializer":
        made = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [output], [tensor])
        return helper.make_model(made)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])])
    if where == "node":
        nodes = [constant]
    elif where == "subgraph":
        nodes = [helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner)]
    else:
        nodes = [helper.make_node("F", [], ["w"], domain="own")]
    made = helper.make_graph([*nodes, helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [output])
    model = helper.make_model(made)
    if where == "function":
        model.functions.append(helper.make_function("own", "F", [], ["w"], [constant], []))
    return model


def saved(folder: Path, model: onnx.ModelProto, data: bytes | None = bytes(16)) -> Path:
    if data is not None:
        (folder / WEIGHTS).write_bytes(data)
    (folder / "g.onnx").write_bytes(model.SerializeToString())
    return folder / "g.onnx"


PLACES = ["initializer", "node", "subgraph", "function"]


@pytest.mark.parametrize("where", PLACES)
def test_tensors_in_the_graph_and_in_its_own_file_pass(tmp_path: Path, where: str) -> None:
    validate_onnx_file(saved(tmp_path, graph(numpy_helper.from_array(np.zeros(4, np.float32), "w"), where), None))
    for entries in ({}, {"offset": "0"}, {"offset": "0", "length": "16"}, {"length": "16", "checksum": "ab"}):
        validate_onnx_file(saved(tmp_path, graph(external(location=WEIGHTS, **entries), where)))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
    "location",
    ["../g.onnx.data", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "./g.onnx.data", "other.data", "", "g.onnx.data\0"],
)
def test_a_tensor_elsewhere_is_refused(tmp_path: Path, where: str, location: str) -> None:
    path = saved(tmp_path, graph(external(location=location, offset="0", length="16"), where))
    with pytest.raises(BundleError, match=r"only g\.onnx\.data may hold some; do not use this bundle"):
        validate_onnx_file(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "16", "length": "16"},
        {"offset": "-4", "length": "16"},
        {"offset": "0x4"},
        {"length": "99999999999999999999999"},
        {"offset": "١"},
        {"more": "1"},
    ],
)
def test_a_part_that_the_file_does_not_have_is_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(BundleError, match="do not use this bundle"):
        validate_onnx_file(saved(tmp_path, graph(external(location=WEIGHTS, **entries))))


def test_a_place_that_is_said_twice_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    tensor = external(location=WEIGHTS)
    with pytest.raises(BundleError, match="beyond the end"):
        validate_onnx_file(saved(tmp_path, graph(tensor), None))
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(BundleError, match="/etc/passwd"):
        validate_onnx_file(saved(tmp_path, graph(tensor)))


def test_what_is_not_onnx_is_refused(tmp_path: Path) -> None:
    whole = graph(external(location=WEIGHTS)).SerializeToString()
    deep = b""
    for _ in range(200):
        # A graph in an attribute of a node of a graph.
        for field in (0x32, 0x2A, 0x0A):
            deep = bytes([field]) + _varint(len(deep)) + deep
    path = tmp_path / "g.onnx"
    for content in (
        b"",
        whole[:-1],
        b"\x0b" + whole,
        b"\xff" * 40,
        b"\x3a" + _varint(1 << 40),
        b"\x3a" + _varint(len(deep)) + deep,
    ):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="not a valid ONNX file"):
            validate_onnx_file(path)


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
