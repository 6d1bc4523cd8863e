"""A short search for learning rate, epochs, dropouts and weight decay: successive halving, chosen by validation alone.

Li et al. 2018, "Hyperband", section 2 describes successive halving: every candidate trains a little, the better third
trains longer. Here each round trains anew, on a learning-rate schedule of its own length.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.artifacts.files import Identity, hash_json, write_json
from fluxtalk.artifacts.json_files import read_json
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import ArtifactError, FluxTalkError, TrainingError
from fluxtalk.model.head.nested_dropout import derive_seed
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer, Validate
from fluxtalk.train.records.log import RunLog

SWEPT = ("learning_rate", "epochs", "dropout", "feature_dropout", "token_dropout", "weight_decay")
"""Options that a sweep chooses."""
_CANDIDATES, _FACTOR, _ROUNDS = 9, 3, 2
"""A sweep `small`: 9 candidates train for a ninth of their epochs, the best 3 for a third: two runs' time."""
_PLACES = {"cache_dir", "data", "device", "log_name", "output_dir", "stage1_checkpoint", "sweep_minutes"}
"""Options that change nothing in a trial's score."""

MakeTrainer = Callable[[TrainConfig], Trainer]


class SweepStoppedError(FluxTalkError):
    """A signal ended the sweep; it goes on when the same command is given again."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("The sweep was stopped by a signal; the same command goes on with it.")
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Trial:
    """One training of a candidate, and its score."""

    round: int
    options: dict[str, Any]
    """`SWEPT` options of the trial; its epochs are those of the whole run."""
    epochs: int
    """Epochs that this trial trained for."""
    score: float | None
    """Validation score at its end; None if its loss was not finite."""
    seconds: float

    @property
    def rank(self) -> float:
        """Score, below all others if there is none."""
        return -math.inf if self.score is None else self.score


@dataclass
class Sweep:
    """The state of a sweep as its file holds it.

    Args:
        config: options of the run, whose values are the first candidate.
        file: written after every trial; a sweep of the same options goes on from it.
    """

    config: TrainConfig
    file: Path
    trials: list[Trial] = field(default_factory=list)
    chosen: dict[str, Any] | None = None
    ended_by_budget: bool = False

    def __post_init__(self) -> None:
        found = read_sweep(self.file)
        if found is not None and found["key"] == self.key:
            self.trials = [Trial(**trial) for trial in found["trials"]]

    @property
    def key(self) -> str:
        """Hash of all options that trials depend on."""
        return hash_json({name: value for name, value in self.config.to_dict().items() if name not in _PLACES})

    def candidates(self) -> list[dict[str, Any]]:
        """Draw the candidates from the seed: the run's own options first, then values around them."""
        own = {name: getattr(self.config, name) for name in SWEPT}
        space: dict[str, list[Any]] = {
            "learning_rate": [min(own["learning_rate"] * factor, 1.0) for factor in (0.3, 1.0, 3.0)],
            "epochs": [max(1, own["epochs"] // 2), own["epochs"]],
            "dropout": [0.0, 0.1, 0.3],
            "feature_dropout": [0.0, 0.1, 0.3],
            "token_dropout": [0.0, 0.1, 0.3],
            "weight_decay": [0.01, 0.1, 0.3],
        }
        generator = np.random.default_rng(derive_seed(self.config.seed, "sweep"))
        drawn = [own]
        while len(drawn) < _CANDIDATES:
            candidate = {name: values[generator.integers(len(values))] for name, values in space.items()}
            if candidate not in drawn:
                drawn.append(candidate)
        return drawn

    def run(
        self, make_trainer: MakeTrainer, validate: Validate, identity: Identity, say: Callable[[str], None]
    ) -> None:
        """Run the trials that are not in the file yet, and choose.

        Raises:
            SweepStoppedError: a signal came; what was tried is in the file.
            TrainingError: no candidate had a finite loss.
        """
        alive = self.candidates()
        for number in range(_ROUNDS):
            for candidate in alive:
                if self._find(number, candidate) is not None:
                    continue
                if self.trials and sum(t.seconds for t in self.trials) > 60 * self.config.sweep_minutes:
                    self.ended_by_budget = True
                    break
                self.trials.append(self._try(number, candidate, make_trainer, validate, identity))
                self._write()
            tried = [trial for c in alive if (trial := self._find(number, c)) is not None]
            if len(tried) < len(alive) and number:
                break
            # A stable sort: of equal scores the earlier candidate.
            best = sorted(tried, key=lambda trial: -trial.rank)
            self.chosen = best[0].options
            if best[0].score is None:
                raise TrainingError(
                    "No candidate of the sweep had a finite loss; lower --learning-rate, or train without --sweep."
                )
            say(f"sweep, round {number + 1}: {len(tried)} of {len(alive)} tried, best {_described(best[0])}")
            if self.ended_by_budget:
                break
            alive = [trial.options for trial in best[: len(best) // _FACTOR]]
        self._write()
        if self.ended_by_budget:
            say(
                f"warning: --sweep-minutes {self.config.sweep_minutes:g} ended the sweep before it had tried all; "
                "what it chose depends on this machine's speed"
            )

    def result(self) -> TrainConfig:
        """Return the run's options with the chosen ones."""
        return dataclasses.replace(self.config, **(self.chosen or {}))

    def _find(self, number: int, options: Mapping[str, Any]) -> Trial | None:
        return next((t for t in self.trials if t.round == number and t.options == options), None)

    def _try(
        self,
        number: int,
        options: dict[str, Any],
        make_trainer: MakeTrainer,
        validate: Validate,
        identity: Identity,
    ) -> Trial:
        epochs = max(1, round(options["epochs"] / _FACTOR ** (_ROUNDS - number)))
        changes = {**options, "epochs": epochs, "eval_every": epochs, "patience": 0, "checkpoint_every": 0}
        trainer = make_trainer(dataclasses.replace(self.config, **changes))
        started, score = time.monotonic(), None
        with tempfile.TemporaryDirectory() as folder:
            try:
                finished = trainer.run(RunFolder(Path(folder)), RunLog(identity, None, active=False), validate)
                score = trainer.state.best_score
            except TrainingError:
                finished = True
        if not finished:
            raise SweepStoppedError(trainer.stop.number or 15)
        return Trial(number, options, epochs, score, round(time.monotonic() - started, 1))

    def _write(self) -> None:
        write_json(
            self.file,
            {
                "sweep": self.config.sweep,
                "key": self.key,
                "began_with": {name: getattr(self.config, name) for name in SWEPT},
                "chosen": self.chosen,
                "ended_by_budget": self.ended_by_budget,
                "trials": [dataclasses.asdict(trial) for trial in self.trials],
            },
        )


def read_sweep(file: Path) -> dict[str, Any] | None:
    """Read the record of a sweep; None if there is none.

    Raises:
        ArtifactError: the file is not such a record.
    """
    if not file.is_file():
        return None
    try:
        record = read_json(file)
        known = {"sweep", "key", "began_with", "chosen", "ended_by_budget", "trials"} <= set(record)
    except (ValueError, TypeError, OSError):
        known = False
    if not known:
        raise ArtifactError(f"{file} is not the record of a sweep; remove it, and the sweep begins anew.")
    return dict(record)


def with_chosen(config: TrainConfig, file: Path) -> TrainConfig:
    """Return the options of a run that a sweep of before changed; the same if none did."""
    record = read_sweep(file) if config.sweep != "none" else None
    if record is None:
        return config
    # What was typed otherwise than when the run began is left, to be refused.
    unchanged = {n for n, value in record["began_with"].items() if getattr(config, n) == value}
    return dataclasses.replace(config, **{n: v for n, v in (record["chosen"] or {}).items() if n in unchanged})


def before_sweep(config: TrainConfig, file: Path) -> TrainConfig:
    """Return the options that a swept run's sweep began with; the same if it was not swept."""
    record = read_sweep(file)
    return dataclasses.replace(config, **record["began_with"]) if record is not None else config


def _described(trial: Trial) -> str:
    values = ", ".join(f"{name.replace('_', ' ')} {trial.options[name]:g}" for name in SWEPT)
    return f"{trial.score:.4f} on validation after {trial.epochs} epochs: {values}"
