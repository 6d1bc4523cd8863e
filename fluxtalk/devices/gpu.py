"""Compute capability of the NVIDIA GPU, asked of the driver itself, so that no CUDA package is needed."""

from __future__ import annotations

import ctypes
import sys

_MAJOR, _MINOR = 75, 76
"""CUdevice_attribute: COMPUTE_CAPABILITY_MAJOR and _MINOR of the driver's cuda.h."""


def compute_capability(device: int = 0) -> str | None:
    """The compute capability of a GPU, such as ``8.9``; None if there is no driver or no such GPU.

    Args:
        device: index by CUDA's count, after CUDA_VISIBLE_DEVICES.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    handle, numbers = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device):
        return None
    for attribute, number in zip((_MAJOR, _MINOR), numbers, strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle):
            return None
    return f"{numbers[0].value}.{numbers[1].value}"
