"""The plan: which stages there are, in their order, and which of them are up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fluxtalk.align import card, encode_and_train, export_and_verify
from fluxtalk.align.folder import StageRecord
from fluxtalk.align.work import Work
from fluxtalk.artifacts.files import hash_json
from fluxtalk.errors import UsageError

REFUSED_PRECISION = 3
"""Exit code if a precision was refused and the bundle holds the others."""


@dataclass(frozen=True)
class Stage:
    """One stage."""

    name: str
    what: str
    """Its work in a few words."""
    inputs: Callable[[Work], Mapping[str, Any]]
    """Everything that its outputs depend on."""
    there: Callable[[Work], bool]
    """Check that what it left is still there, unchanged."""
    run: Callable[[Work, bool], dict[str, Any]]
    """Does the work and returns what it left; the flag says that it was begun before with the same inputs."""


STAGES = (
    Stage("pack", "encoders into one checkpoint", Work.pack_inputs, encode_and_train.packed,
          lambda work, _: encode_and_train.pack(work)),
    Stage("features", "every item encoded once", Work.features_inputs, encode_and_train.encoded,
          lambda work, _: encode_and_train.features(work)),
    Stage("train", "register tokens", Work.train_inputs, encode_and_train.trained, encode_and_train.train),
    Stage("evaluate", "recall by k, and the baselines", Work.evaluate_inputs, encode_and_train.measured,
          lambda work, _: encode_and_train.measure(work)),
    Stage("export", "graphs held against eager PyTorch", Work.export_inputs, export_and_verify.exported,
          lambda work, _: export_and_verify.export(work)),
    Stage("verify", "golden vectors replayed", Work.verify_inputs, export_and_verify.verified,
          lambda work, _: export_and_verify.verify(work)),
    Stage("card", "the model card", Work.card_inputs, card.written, lambda work, _: card.write(work)),
)  # fmt: skip
NEEDED_BY = {"features": ("train", "evaluate")}
"""Stages that alone read what a stage leaves outside of the folder: it may be gone once they are done."""


@dataclass(frozen=True)
class AlignResult:
    """The outcome of `align`."""

    done: tuple[str, ...]
    """Stages that were run; the others were up to date."""
    refused: tuple[str, ...] = ()
    """Precisions that the bundle was asked for and does not hold."""

    @property
    def exit_code(self) -> int:
        """0; 3 if a precision was refused."""
        return REFUSED_PRECISION if self.refused else 0


class StageFailed(Exception):  # noqa: N818  # carries an error or an interruption, its cause
    """A stage that did not end; its cause is the error or the interruption."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


def align(work: Work, until: str = "card") -> AlignResult:
    """Run every stage that is not up to date, in order.

    Args:
        until: name of the last stage.

    Raises:
        UsageError: there is no such stage, or the output folder belongs to something else.
        StageFailed: a stage did not end. Those before it are kept, and the same request goes on from there.
    """
    names = [stage.name for stage in STAGES]
    if until not in names:
        raise UsageError(f"--until is one of {', '.join(names)}; got {until!r}.")
    work.folder.read_record()  # refuses a foreign folder before anything is made in it
    work.require_data()
    done: list[str] = []
    with work.folder.held():
        work.stages = work.folder.read_record()
        work.allow_code()
        for number, stage in enumerate(STAGES[: names.index(until) + 1], 1):
            head = f"[{number}/{len(STAGES)}] {stage.name}"
            try:
                if _is_current(work, stage):
                    work.say(f"{head}: up to date")
                    continue
                work.say(f"{head}: {stage.what}")
                _run(work, stage)
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                raise StageFailed(stage.name) from error
            done.append(stage.name)
    refused = work.recorded("export", "refused") if names.index(until) >= names.index("export") else None
    return AlignResult(tuple(done), tuple(refused or ()))


def _run(work: Work, stage: Stage) -> None:
    inputs, before = hash_json(stage.inputs(work)), work.stages.get(stage.name)
    begun_before = before is not None and before.inputs == inputs
    # Recorded as begun, so that what it leaves is known to be of these inputs when it goes on.
    work.stages[stage.name] = StageRecord(inputs, outputs=before.outputs if before is not None else {})
    work.folder.write_record(work.stages)
    started = time.monotonic()
    outputs = stage.run(work, begun_before)
    work.stages[stage.name] = StageRecord(inputs, True, round(time.monotonic() - started, 1), outputs)
    work.folder.write_record(work.stages)


def _is_current(work: Work, stage: Stage) -> bool:
    record = work.stages.get(stage.name)
    if record is None or not record.done or record.inputs != hash_json(stage.inputs(work)):
        return False
    needing = NEEDED_BY.get(stage.name, ())
    return stage.there(work) or (bool(needing) and all(_is_current(work, s) for s in STAGES if s.name in needing))
