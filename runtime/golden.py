"""Golden vectors: inputs with their eager outputs, replayed on whatever serves them.

The file holds, per modality, one padded batch of preprocessed inputs and the float32 outputs of eager PyTorch at
k = N, named ``<modality>.<array>``. The last rows are hard cases: a single feature, at the beginning and behind
padding, and none at all; or a black image.
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

from fluxtalk.bundle import OUTPUTS, TOKEN_INDEX, Bundle
from fluxtalk.errors import BundleError, ParityError
from fluxtalk.parity import Difference, Tolerance, embedding_difference, largest, token_difference, top1_agreement
from fluxtalk.runtime.session import Session

_MORE_PADDING = 7
_ALONE = 12
"""Rows that are also run one at a time."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ParityReport:
    """How far a session is from the eager outputs with the first k tokens, over the batches tried."""

    modality: str
    precision: str
    session: str
    k: int
    cases: int
    difference: Difference
    tolerance: Tolerance

    @property
    def broken(self) -> list[str]:
        """One phrase for each promise that does not hold."""
        return self.difference.broken(self.tolerance)

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
                f"{'; '.join(self.broken)}; do not serve this bundle with this back end."
            )


def golden_bytes(inputs: Mapping[str, Arrays], outputs: Mapping[str, Arrays]) -> bytes:
    """The content of a golden file, the same for the same arrays.

    Args:
        inputs: modality to input name to array.
        outputs: modality to output name to array (batch, N, dim).
    """
    arrays = {
        f"{m}.{name}": np.ascontiguousarray(a)
        for part in (inputs, outputs)
        for m, group in part.items()
        for name, a in group.items()
    }
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


def read_golden(bundle: Bundle, modality: str) -> tuple[Arrays, Arrays]:
    """The golden inputs and eager outputs of a modality.

    Raises:
        BundleError: the file cannot be read, or lacks an array.
    """
    path = bundle.folder / bundle.manifest.golden
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"The golden vectors {path} cannot be read ({error}); export the bundle again.") from None
    try:
        inputs = {
            name: arrays[f"{modality}.{name}"]
            for name in bundle.manifest.modalities[modality].inputs
            if name != TOKEN_INDEX
        }
        return inputs, {name: arrays[f"{modality}.{name}"] for name in OUTPUTS}
    except KeyError as error:
        raise BundleError(f"The golden vectors {path} lack {error}; export the bundle again.") from None


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
        yield from replay(modality, name, session_of(modality), inputs, expected, tolerance, room)


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
) -> Iterator[ParityReport]:
    """Run a session on batches cut and padded from ``inputs``, for every k, against ``expected`` at k = N.

    Args:
        room: by how much a batch may be padded further.

    Yields:
        one report for each k.
    """
    whole = _run(session, inputs, expected["tokens"].shape[1])
    for k in range(1, expected["tokens"].shape[1] + 1):
        found = _run(session, inputs, k)
        difference = embedding_difference(found["embeddings"], expected["embeddings"][:, :k])
        tokens = token_difference(found["tokens"], expected["tokens"][:, :k])
        rows, cases = 0.0, 1
        for chosen, batch in _variations(inputs, room):
            varied = _run(session, batch, k)
            other = embedding_difference(varied["embeddings"], expected["embeddings"][chosen, :k])
            difference = dataclasses.replace(
                difference,
                max_abs=max(difference.max_abs, other.max_abs),
                mean_abs=max(difference.mean_abs, other.mean_abs),
                min_cosine=min(difference.min_cosine, other.min_cosine),
            )
            tokens = max(tokens, token_difference(varied["tokens"], expected["tokens"][chosen, :k]))
            rows = max(rows, largest(varied["embeddings"] - found["embeddings"][chosen]))
            cases += 1
        difference = dataclasses.replace(
            difference,
            tokens=tokens,
            rows=rows,
            prefix=largest(found["embeddings"] - whole["embeddings"][:, :k]),
            top1=top1_agreement(found["embeddings"][:, k - 1], expected["embeddings"][:, k - 1]),
        )
        yield ParityReport(modality, precision, session.describe(), k, cases, difference, tolerance)


def _run(session: Session, batch: Arrays, k: int) -> dict[str, NDArray[np.float32]]:
    return session.run({**batch, TOKEN_INDEX: np.arange(k, dtype=np.int64)})


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
