"""Report of `bench.gpu`: what it did, measured, and could not do and why, written after every part."""

from __future__ import annotations

import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fluxtalk.artifacts.files import write_json
from fluxtalk.errors import BackendError, reason

T = TypeVar("T")


class Report:
    """The results so far.

    Args:
        output: the .json, written again after each part.
        limit: seconds after which no more parts begin.
    """

    def __init__(self, output: Path, limit: float) -> None:
        self._output = output
        self._ends = time.monotonic() + limit
        self.results: dict[str, Any] = {"could_not": [], "failed": []}

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self._ends - time.monotonic()

    @property
    def failed(self) -> bool:
        """True if something went wrong, other than that a library or device is missing."""
        return bool(self.results["failed"])

    def part(self, name: str, needs: float, work: Callable[[], T]) -> T | None:
        """Do one part and keep what it returns; None if it could not be done.

        Args:
            needs: seconds that it takes at least; with fewer left it does not begin.
        """
        self.say(f"== {name}")
        started = time.monotonic()
        done = self.attempt(name, work, needs)
        self.results.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)
        self.write()
        return done

    def attempt(self, what: str, work: Callable[[], T], needs: float = 0) -> T | None:
        """Do something, or note why that was not possible, and go on."""
        if self.left < needs:
            self.could_not(what, f"{max(0, self.left):.0f} s are left of --limit, and it takes {needs:.0f}")
            return None
        try:
            return work()
        except (BackendError, ImportError) as error:
            self.could_not(what, str(error))
        except subprocess.TimeoutExpired as error:
            self.could_not(what, f"it was not done after {error.timeout:.0f} s, which is what --limit left")
        except Exception as error:
            self.fail(what, f"{type(error).__name__}: {reason(error)}", traceback.format_exc())
        return None

    def could_not(self, what: str, why: str) -> None:
        """Note that something is missing here."""
        self.results["could_not"].append({"what": what, "why": why})
        self.say(f"   could not do {what}: {why}")

    def fail(self, what: str, why: str, trace: str | None = None) -> None:
        """Note that something went wrong."""
        self.results["failed"].append({"what": what, "why": why, **({"trace": trace} if trace else {})})
        self.say(f"   FAILED: {what}: {why}")

    def say(self, line: str) -> None:
        """Print a line at once."""
        print(line, flush=True)

    def write(self) -> None:
        """Write what there is."""
        write_json(self._output, self.results)
