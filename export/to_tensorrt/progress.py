"""Progress of a TensorRT build: its nested phases as one share and as a progress bar."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from fluxtalk.console import progress

_WHOLE = 100


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Share of a build that is done. Thread-safe, because builders report from several threads.

    A phase counts as the step of its parent in which it runs. The share never falls.

    Args:
        title: shown before the bar.
    """

    def __init__(self, title: str) -> None:
        self.share = 0.0
        """Finished share of the build, 0 to 1."""
        self.canceled = False
        """True once Ctrl-C was pressed during the build."""
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._bar: tqdm = progress(None, title, total=_WHOLE, unit="%")

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note that a phase begins, inside its parent if it has one."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))
            self._bar.set_postfix_str(name, refresh=False)
            self._show()

    def step(self, name: str, step: int) -> bool:
        """Note that step number ``step`` of a phase is done; False asks the builder to stop."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._show()
            return not self.canceled

    def finish(self, name: str) -> None:
        """Note that a phase ends."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None:
                self.share = max(self.share, 1.0)
            self._show()

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()

    def _show(self) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        self.share = max(self.share, *map(self._share_of, roots), 0.0)
        self._bar.update(round(self.share * _WHOLE) - self._bar.n)

    def _share_of(self, name: str) -> float:
        phase = self._phases[name]
        inside = max(
            (self._share_of(child) for child, other in self._phases.items() if other.parent == name), default=0
        )
        return min(1.0, (phase.done + min(1.0, inside)) / phase.steps)


def progress_monitor(trt: Any, state: BuildProgress) -> Any:
    """A progress monitor of the module that reports to ``state``.

    Ctrl-C arrives inside these calls. An exception would unwind through the library, so `BuildProgress.canceled` is
    set instead, and the builder is asked to stop.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                state.start(phase_name, parent_phase, num_steps)
            except KeyboardInterrupt:
                state.canceled = True

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return state.step(phase_name, step)
            except KeyboardInterrupt:
                state.canceled = True
                return False

        def phase_finish(self, phase_name: str) -> None:
            try:
                state.finish(phase_name)
            except KeyboardInterrupt:
                state.canceled = True

    return Monitor()
