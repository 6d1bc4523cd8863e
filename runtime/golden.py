"""Golden vectors: inputs with their eager outputs, replayed on whatever serves them.

The file holds, per modality, one padded batch of preprocessed inputs and the float32 outputs of eager PyTorch at
k = N, named ``<modality>.<array>``. The last rows are hard cases: a single feature, at the beginning and behind
padding, and none at all; or a black image. Where preprocessing has a longest input, one row of that length lies apart,
as ``<modality>.longest.<array>``: padded to it, the whole batch would be large.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fluxtalk.artifacts.bundle import OUTPUTS, TOKEN_INDEX, Bundle
from fluxtalk.errors import BackendError, BundleError, InputError, ParityError, reason
from fluxtalk.runtime.backends.session import Session
from fluxtalk.scoring.parity import OutputDifference, Tolerance, largest, top1_agreement
from fluxtalk.scoring.parity_accumulator import AttentionDifference, ParityAccumulator
from fluxtalk.tokens import ATTENTION

_MORE_PADDING = 7
_ALONE = 12
"""Rows that are also run one at a time."""

_LONGEST = "longest"

Arrays = dict[str, NDArray[Any]]
Golden = tuple[Arrays, Arrays]
"""Inputs by name, and the expected outputs at k = N."""


@dataclass(frozen=True)
class ParityReport:
    """How far a session is from the eager outputs with the first k tokens, over the batches tried."""

    modality: str
    precision: str
    session: str
    k: int
    cases: int
    difference: OutputDifference
    tolerance: Tolerance
    attention: AttentionDifference | None = None
    """None where the golden vectors hold no attention."""

    @property
    def broken(self) -> list[str]:
        """One phrase for each promise that does not hold."""
        phrases = self.difference.violations(self.tolerance)
        return phrases + (self.attention.violations(self.tolerance) if self.attention is not None else [])

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {**dataclasses.asdict(self), "holds": not self.broken, "broken": self.broken}

    def require(self) -> None:
        """Raise unless parity holds.

        Raises:
            ParityError: it does not.
        """
        if self.broken:
            raise ParityError(
                f"Parity does not hold: {self.modality} in {self.precision} with k = {self.k} on {self.session}: "
                f"{'; '.join(self.broken)}; do not serve this bundle with this backend."
            )


def golden_bytes(
    inputs: Mapping[str, Arrays], outputs: Mapping[str, Arrays], longest: Mapping[str, Golden] | None = None
) -> bytes:
    """The content of a golden file, the same for the same arrays.

    Args:
        inputs: modality to input name to array.
        outputs: modality to output name to array: (batch, N, dim), and of attention (batch, N, length).
        longest: modality to its row of the longest input, where there is one.
    """
    named = [(m, part[m]) for part in (inputs, outputs) for m in part]
    named += [(f"{m}.{_LONGEST}", group) for m, golden in (longest or {}).items() for group in golden]
    arrays = {f"{prefix}.{name}": np.ascontiguousarray(a) for prefix, group in named for name, a in group.items()}
    return bytes(save(dict(sorted(arrays.items()))))


def hard_cases(batch: Arrays) -> Arrays:
    """A batch of real items with the hard cases behind it.

    Args:
        batch: preprocessed; one of images, or one with a ``mask``.
    """
    first = {name: array[:1] for name, array in batch.items()}
    if "mask" not in batch:
        return {name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in batch.items()}
    rows = [batch]
    for position in (0, -1, None):
        mask = np.zeros_like(first["mask"])
        if position is not None:
            mask[:, position] = True
        rows.append({**{name: np.where(_wide(mask, array), array, 0) for name, array in first.items()}, "mask": mask})
    # The same single feature, behind the padding.
    for name, array in first.items():
        if name != "mask":
            rows[2][name] = np.zeros_like(array)
            rows[2][name][:, -1] = array[:, 0]
    return {name: np.concatenate([part[name] for part in rows]) for name in batch}


def read_golden(bundle: Bundle, modality: str) -> Golden:
    """The golden inputs and eager outputs of a modality: `OUTPUTS`, and attention where the file has it.

    Raises:
        BundleError: the file cannot be read, or lacks an array.
    """
    return _golden(bundle, _read(bundle), modality, modality)


def read_longest(bundle: Bundle, modality: str) -> Golden | None:
    """The same of one row of the longest input that a modality's preprocessing gives; None where the file has none.

    Raises:
        BundleError: as for `read_golden`.
    """
    arrays, prefix = _read(bundle), f"{modality}.{_LONGEST}"
    if not any(name.startswith(f"{prefix}.") for name in arrays):
        return None
    return _golden(bundle, arrays, modality, prefix)


def _read(bundle: Bundle) -> Arrays:
    path = bundle.folder / bundle.manifest.golden
    try:
        arrays: Arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"The golden vectors {path} cannot be read ({error}); export the bundle again.") from None
    return arrays


def _golden(bundle: Bundle, arrays: Arrays, modality: str, prefix: str) -> Golden:
    names = [name for name in bundle.manifest.modalities[modality].inputs if name != TOKEN_INDEX]
    # Bundles with attention were written before golden vectors held it.
    outputs = [*OUTPUTS, *[ATTENTION] * (f"{prefix}.{ATTENTION}" in arrays)]
    try:
        inputs, expected = ({name: arrays[f"{prefix}.{name}"] for name in group} for group in (names, outputs))
    except KeyError as error:
        path = bundle.folder / bundle.manifest.golden
        raise BundleError(f"The golden vectors {path} lack {error}; export the bundle again.") from None
    return inputs, expected


def verify_golden(
    bundle: Bundle,
    session_of: Callable[[str], Session],
    modalities: Sequence[str] | None = None,
    precision: str | None = None,
) -> Iterator[ParityReport]:
    """Replay every modality's golden vectors, for every k, alone and in batches.

    Args:
        session_of: modality to the session under test.
        modalities: replay these alone; None takes all.
        precision: of the sessions, whose tolerance holds; None is the bundle's first.

    Raises:
        BundleError: the golden file cannot be read, or lacks an array.
    """
    name = bundle.precision(precision)
    tolerance = bundle.manifest.precisions[name].tolerance
    for modality in modalities if modalities is not None else bundle.manifest.modalities:
        inputs, expected = read_golden(bundle, modality)
        room = padding_room(bundle.manifest.modalities[modality].preprocess, inputs)
        longest = read_longest(bundle, modality)
        yield from replay(modality, name, session_of(modality), inputs, expected, tolerance, room, longest)


def padding_room(preprocess: Mapping[str, Any], inputs: Arrays) -> int:
    """How much more padding the golden batch takes: an encoder with learned positions has a longest input."""
    if "mask" not in inputs:
        return 0
    longest: int = preprocess.get("max_length", 1 << 30)
    return min(_MORE_PADDING, longest - int(inputs["mask"].shape[1]))


def replay(
    modality: str,
    precision: str,
    session: Session,
    inputs: Arrays,
    expected: Arrays,
    tolerance: Tolerance,
    room: int = 0,
    longest: Golden | None = None,
) -> Iterator[ParityReport]:
    """Run a session on batches cut and padded from ``inputs``, for every k, against ``expected`` at k = N.

    Args:
        room: by how much a batch may be padded further.
        longest: a row of the longest input; a session that was compiled for shorter ones is not asked for it.

    Yields:
        one report for each k.

    Raises:
        ParityError: the session does not run the longest input.
    """
    outputs, total = tuple(expected), expected["tokens"].shape[1]
    whole = _run(session, inputs, total, outputs)
    for k in range(1, total + 1):
        worst, rows = ParityAccumulator(), 0.0
        found = _run(session, inputs, k, outputs)
        worst.add(inputs, found, _first(expected, k))
        for chosen, batch in _variations(inputs, room):
            varied = _run(session, batch, k, outputs)
            worst.add(batch, varied, _first(expected, k, chosen))
            rows = max(rows, largest(varied["embeddings"] - found["embeddings"][chosen]))
        if longest is not None and _takes(session, longest[0]):
            worst.add(longest[0], _run_longest(modality, precision, session, longest, k), _first(longest[1], k))
        difference = dataclasses.replace(
            worst.difference,
            rows=rows,
            prefix=largest(found["embeddings"] - whole["embeddings"][:, :k]),
            top1=top1_agreement(found["embeddings"][:, k - 1], expected["embeddings"][:, k - 1]),
        )
        described = session.describe()
        yield ParityReport(modality, precision, described, k, worst.cases, difference, tolerance, worst.attention)


def replay_longest(
    modality: str, precision: str, session: Session, longest: Golden, tolerance: Tolerance
) -> Iterator[ParityReport]:
    """As `replay`, of the longest input alone: rows, prefixes and neighbors are not looked at.

    Raises:
        ParityError: the session does not run it.
    """
    for k in range(1, longest[1]["tokens"].shape[1] + 1):
        worst = ParityAccumulator()
        worst.add(longest[0], _run_longest(modality, precision, session, longest, k), _first(longest[1], k))
        described = session.describe()
        yield ParityReport(modality, precision, described, k, worst.cases, worst.difference, tolerance, worst.attention)


def _run(session: Session, batch: Arrays, k: int, outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    return session.run(batch, k, outputs)


def _run_longest(
    modality: str, precision: str, session: Session, longest: Golden, k: int
) -> dict[str, NDArray[np.float32]]:
    try:
        return _run(session, longest[0], k, tuple(longest[1]))
    except (InputError, BackendError) as error:
        raise ParityError(
            f"{modality} in {precision} does not run the longest input that its preprocessing gives, of length "
            f"{longest[0]['mask'].shape[1]}, on {session.describe()} ({reason(error)}); export the run again with an "
            "encoder or a max_length that fit each other."
        ) from None


def _takes(session: Session, inputs: Arrays) -> bool:
    """Whether a session was compiled for inputs of that length; one that was not says so to whoever sends one."""
    compiled: int | None = getattr(session, "max_length", None)
    return compiled is None or int(inputs["mask"].shape[1]) <= compiled


def _first(expected: Arrays, k: int, rows: slice = slice(None)) -> Arrays:
    return {name: array[rows, :k] for name, array in expected.items()}


def _variations(inputs: Arrays, room: int) -> Iterator[tuple[slice, Arrays]]:
    """An odd part; and a few rows alone, with as much padding as they have, with more and with none."""
    total = len(next(iter(inputs.values())))
    yield slice(0, max(1, total - 1)), {name: array[: max(1, total - 1)] for name, array in inputs.items()}
    if room:
        yield slice(0, total), {name: _padded(array, room) for name, array in inputs.items()}
    for row in sorted({*range(min(total, _ALONE // 2)), *range(max(0, total - _ALONE // 2), total)}):
        alone = {name: array[row : row + 1] for name, array in inputs.items()}
        yield slice(row, row + 1), alone
        if "mask" in inputs:
            # Cut behind the last feature; a row without any keeps one of padding.
            end = 1 + int(np.flatnonzero(inputs["mask"][row]).max(initial=0))
            yield slice(row, row + 1), {name: array[:, :end] for name, array in alone.items()}


def _padded(array: NDArray[Any], more: int) -> NDArray[Any]:
    return np.pad(array, [(0, 0), (0, more)] + [(0, 0)] * (array.ndim - 2))


def _wide(mask: NDArray[np.bool_], array: NDArray[Any]) -> NDArray[np.bool_]:
    return mask.reshape(mask.shape + (1,) * (array.ndim - mask.ndim))
