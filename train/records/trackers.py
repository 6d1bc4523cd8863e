"""A run's numbers in Weights & Biases and MLflow, where `--track` asks for them.

Each goes where its library says: ``WANDB_MODE=offline`` and ``WANDB_DIR``, ``MLFLOW_TRACKING_URI``. The names of the
numbers are those of TensorBoard. A resumed run goes on in the run that it began there; records after its checkpoint
cannot be withdrawn there, and are written again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fluxtalk.artifacts.files import write_json
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.errors import BackendError, UsageError, reason
from fluxtalk.train.config import TRACKER_NAMES
from fluxtalk.train.records.to_tensorboard import scalars

PROJECT = "fluxtalk"
"""Project of Weights & Biases and experiment of MLflow, unless ``WANDB_PROJECT`` or ``MLFLOW_EXPERIMENT_NAME`` says
another."""
_MOST_PARAMETERS = 100
"""Parameters that MLflow takes at a time."""


class Tracker(Protocol):
    """Place outside a run's folder that its numbers go to, too."""

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add a record's numbers; a record without a ``step`` is left out."""

    def close(self) -> None:
        """Send what is pending; a later record opens the run again."""


def open_trackers(names: Sequence[str], folder: Path, options: Mapping[str, Any]) -> tuple[Tracker, ...]:
    """Make the trackers of a run; nothing is sent before the first record.

    Args:
        names: keys of `TRACKERS`.
        folder: the run's folder, whose name is that of the run.
        options: every option of the training.

    Raises:
        UsageError: a library is not installed.
        BackendError: it is installed and cannot be imported.
    """
    return tuple(TRACKERS[name](folder, options) for name in names)


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._library = _imported("wandb")
        self._folder, self._options = folder, dict(options)
        self._run: Any = None

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add a record's numbers, with ``step`` as their axis: W&B's own steps never go back, resumed runs do."""
        if "step" not in values:
            return
        if self._run is None:
            self._run = self._library.init(
                id=_run_id(self._folder, "wandb", lambda: uuid.uuid4().hex),
                resume="allow",
                name=self._folder.name,
                config=self._options,
                settings=self._library.Settings(console="off"),
                **({} if self._library.setup().settings.project else {"project": PROJECT}),
            )
            self._run.define_metric("*", step_metric="step")
        self._run.log({"step": values["step"], **{f"{kind}/{name}": value for name, value in scalars(values)}})

    def close(self) -> None:
        """Send what is pending, and end the process that sends."""
        if self._run is not None:
            self._run.finish()
            self._run = None


class MlflowTracker:
    """A run of MLflow."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._library = _imported("mlflow")
        self._folder, self._options = folder, dict(options)
        self._client: Any = None
        self._run = ""

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add a record's numbers at its step."""
        if "step" not in values:
            return
        if self._client is None:
            self._open()
        metric, now = self._library.entities.Metric, int(1000 * time.time())
        numbers = [metric(f"{kind}/{name}", value, now, values["step"]) for name, value in scalars(values)]
        self._client.log_batch(self._run, metrics=numbers)

    def close(self) -> None:
        """Mark the run as finished."""
        if self._client is not None:
            self._client.set_terminated(self._run)
            self._client = None

    def _open(self) -> None:
        self._client = self._library.MlflowClient()
        self._run = _run_id(self._folder, "mlflow", self._begin)
        self._client.update_run(self._run, status="RUNNING")

    def _begin(self) -> str:
        named = self._library.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or PROJECT
        experiment = self._client.get_experiment_by_name(named)
        number = self._client.create_experiment(named) if experiment is None else experiment.experiment_id
        run = str(self._client.create_run(number, run_name=self._folder.name).info.run_id)
        parameters = [self._library.entities.Param(name, str(value)) for name, value in self._options.items()]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(run, params=parameters[start : start + _MOST_PARAMETERS])
        return run


TRACKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = dict(
    zip(TRACKER_NAMES, (WandbTracker, MlflowTracker), strict=True)
)


def _run_id(folder: Path, tracker: str, begin: Callable[[], str]) -> str:
    """The id of this run there, kept in ``trackers.json``; begun if there is none yet.

    Raises:
        ArtifactError: the file is not a JSON object.
    """
    path = folder / "trackers.json"
    known = read_object(path) if path.is_file() else {}
    if tracker not in known:
        known[tracker] = begin()
        write_json(path, known)
    return str(known[tracker])


def _imported(library: str) -> Any:
    try:
        if library == "wandb":
            import wandb

            return wandb
        import mlflow
        import mlflow.entities
        import mlflow.environment_variables
    except ModuleNotFoundError as error:
        if error.name == library:
            raise UsageError(f"--track {library} needs {library}; pip install 'fluxtalk[{library}]'.") from None
        raise BackendError(f"{library} is installed but cannot be imported ({reason(error)}); repair it.") from error
    return mlflow
