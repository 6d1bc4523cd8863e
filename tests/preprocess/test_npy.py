"""Files of features from strangers: every array that numpy writes is read, and a false header allocates nothing."""

from __future__ import annotations

import base64
import tracemalloc
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fluxtalk.errors import InputError
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.preprocess.features import read_npy
from fluxtalk.runtime.server.execution.decoding import decode


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A `.npy` file with any header."""
    head = header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + data


def described(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


BROKEN_NPY = {
    "terabytes": npy(described("'<f4'", "(1000000000000, 3)")),
    "no integer of C": npy(described("'<f4'", f"({10**27}, 3)")),
    "no integer of C beside 0": npy(described("'<f4'", f"(0, {10**27}, 3)")),
    "a very long number": npy(described("'<f4'", f"({'9' * 4000}, {'9' * 4000}, 3)")),
    "negative": npy(described("'<f4'", "(-1, -3)"), bytes(12)),
    "a row too many": npy(described("'<f4'", "(1, 3)"), bytes(24)),
    "objects": npy(described("'|O'", "(1, 3)"), bytes(24)),
    "of no width": npy(described("'|V0'", "(9999999999999, 3)")),
    "fields": npy(described("[('a', '<f4')]", "(1, 3)"), bytes(12)),
    "no type": npy(described("'<zz'", "(1, 3)"), bytes(12)),
    "deep": npy(described("(" * 3000 + ")" * 3000, "(1, 3)")),
    "many signs": npy(described("-" * 6000 + "1", "(1, 3)")),
    "an open bracket": npy("{'descr': ("),
    "a program": npy("__import__('os').abort()"),
    "a later version": npy(described("'<f4'", "(1, 3)"), bytes(12), b"\x03\x00"),
    "zip": b"PK\x03\x04aaaaaaaaaaaaaaaaaaaaa",
    "magic alone": b"\x93NUMPY",
    "pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("name", BROKEN_NPY)
def test_feature_files_of_strangers_are_refused_before_memory_is_asked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "f.npy").write_bytes(BROKEN_NPY[name])
    tracemalloc.start()
    try:
        for read in (
            lambda: FeaturesPreprocessor(3).prepare(tmp_path / "f.npy"),
            lambda: decode(FeaturesPreprocessor(3), base64.b64encode(BROKEN_NPY[name]).decode()),
        ):
            with pytest.raises(InputError, match=r"\.$"):
                read()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "|u1", ">i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_feature_files_are_what_numpy_loads(tmp_path: Path, dtype: str, order: Literal["C", "F"]) -> None:
    values = np.asarray(np.random.default_rng(0).integers(0, 99, (5, 3)), dtype=dtype, order=order)
    path = tmp_path / "f.npy"
    np.save(path, values)
    with path.open("rb") as file:
        read = read_npy(file, path.stat().st_size)
    assert read.dtype == values.dtype
    assert np.array_equal(read, np.load(path))
    with (tmp_path / "second.npy").open("wb") as file:
        np.lib.format.write_array(file, values, version=(2, 0))
    for prepared in (
        FeaturesPreprocessor(3).prepare(tmp_path / "second.npy"),
        decode(FeaturesPreprocessor(3), base64.b64encode(path.read_bytes()).decode()),
        decode(FeaturesPreprocessor(3), values.tolist()),
    ):
        assert np.array_equal(np.asarray(prepared), values.astype(np.float32))
