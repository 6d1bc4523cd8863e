"""The one adapter over `tensorrt` (10.x, 11.x) and `tensorrt_rtx` (1.x), which share their classes.

Export compiles with it, the runtime runs with it. The modules are imported by name, on first use.

The numbers of flags differ between versions, so they are always looked up by name. In 11.x networks are strongly
typed and the flags of precision are gone, so the types of the graph are the precision, in every version.
tests/export/to_tensorrt/test_bindings.py holds every name that is used of either library against its bindings.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from fluxtalk.artifacts.engine import FLAVOR_ALIASES, FLAVOR_NAMES, FLAVORS, RTX, Flavor
from fluxtalk.errors import BackendError, UsageError

MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
NAMES: dict[Flavor, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
_KEPT_ERRORS = 20


@dataclass(frozen=True)
class TensorRT:
    """One of the two libraries, imported."""

    flavor: Flavor
    trt: Any
    """The Python module."""
    logger: Any
    """Logger of the module that collects errors; the library keeps the first one of a process."""
    errors: deque[str]
    """Latest error messages, oldest first."""

    @property
    def version(self) -> str:
        """Full version, such as ``1.7.1.116``."""
        return str(self.trt.__version__)

    @property
    def name(self) -> str:
        """Name and version for messages."""
        return f"{NAMES[self.flavor]} {self.version}"

    @functools.cached_property
    def cuda_major(self) -> int | None:
        """Major version of CUDA that the library was built for; None if its package does not say."""
        package = re.compile(MODULES[self.flavor] + r"[-_]cu(\d+)[-_]bindings\Z")
        matches = (package.match(found.name.lower()) for found in importlib.metadata.distributions() if found.name)
        return next((int(match[1]) for match in matches if match), None)

    def has_flag(self, name: str) -> bool:
        """True if the builder has a flag of that name."""
        return hasattr(self.trt.BuilderFlag, name)

    @property
    def network_flags(self) -> int:
        """Creation flags of a strongly typed network."""
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    @property
    def named_capabilities(self) -> list[str]:
        """Compute capabilities that can be compiled for by name; empty if the flavor compiles for the GPU here only."""
        trt = self.trt
        if not hasattr(trt, "ComputeCapability"):
            return []
        numbers = (name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
        return [f"{number[:-1]}.{number[-1]}" for number in numbers]

    def last_error(self) -> str:
        """The first of the collected errors in one line, which is the cause of the others; clears them."""
        first = self.errors[0] if self.errors else ""
        self.errors.clear()
        return short_reason(first)


def load_tensorrt(flavor: Flavor) -> TensorRT:
    """Import the library of a flavor.

    Raises:
        BackendError: it is not installed, or cannot be imported.
    """
    return _load(flavor)


def choose_flavor(name: str, named_gpus: bool) -> Flavor:
    """Choose the flavor to compile with.

    Args:
        name: ``auto``, ``tensorrt`` or ``tensorrt-rtx``.
        named_gpus: whether compute capabilities are named, which only TensorRT-RTX compiles for.

    Returns:
        The flavor of that name. For ``auto``: TensorRT-RTX if compute capabilities are named; else TensorRT if it is
        installed, because it supports every GPU; else TensorRT-RTX.

    Raises:
        BackendError: for ``auto``, neither is installed.
        UsageError: there is no flavor of that name.
    """
    name = FLAVOR_ALIASES.get(name, name)
    for flavor, flavor_name in FLAVOR_NAMES.items():
        if name == flavor_name:
            return flavor
    if name != "auto":
        raise UsageError(f"The flavor is auto, {' or '.join(FLAVOR_NAMES.values())}; got {name!r}.")
    installed = [flavor for flavor in FLAVORS if importlib.util.find_spec(MODULES[flavor]) is not None]
    if not installed:
        raise BackendError(
            "Neither tensorrt nor tensorrt_rtx is installed; pip install tensorrt_rtx (GeForce and RTX GPUs, compiles "
            "without one too) or tensorrt (every GPU)."
        )
    return RTX if named_gpus else installed[0]


def short_reason(message: str) -> str:
    """An error message of the library in one line, without the place in its source that raised it."""
    line = next((line.strip() for line in message.splitlines() if line.strip()), "it gives no reason")
    inner = re.search(r"Error Code \d+: [^(]*\((.*)\)", line)
    said = re.sub(r"\A\[[^]]*\] ", "", inner[1] if inner else line)
    return re.split(r"\.?\s*\bIn \w+ at /", said)[0].strip().rstrip(".")[:300] or line


@functools.cache
def _load(flavor: Flavor) -> TensorRT:
    module = MODULES[flavor]
    if importlib.util.find_spec(module) is None:
        raise BackendError(
            f"{NAMES[flavor]} was asked for and is not installed; pip install {module}, or ask for another."
        )
    try:
        trt = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"{module} is installed but cannot be imported ({error}); install it again, with its libraries."
        ) from None
    errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
    return TensorRT(flavor, trt, _logger(trt, errors), errors)


def _logger(trt: Any, errors: deque[str]) -> Any:
    """A logger that collects errors. The library keeps the first one of a process, so only one is made."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                errors.append(message)

    return Logger()
