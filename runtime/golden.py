"""Golden vectors: inputs with their eager outputs, replayed on whatever serves them.

The file holds, per modality, one padded batch of preprocessed inputs and the float32 outputs of eager PyTorch at
k = N, named ``<modality>.<array>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fluxtalk.bundle import OUTPUTS, TOKEN_INDEX, Bundle
from fluxtalk.errors import BundleError, ParityError
from fluxtalk.runtime.session import Session

EMBEDDING_TOLERANCE = 1e-5
"""Largest absolute difference of a normalised embedding on any machine; export itself demands a tenth."""
HIDDEN_TOLERANCE = 1e-5
"""Of hidden values, relative to the largest of them where that is above 1."""

_MORE_PADDING = 7

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ParityReport:
    """How far a session is from the eager outputs, over all k and batches tried."""

    modality: str
    session: str
    cases: int
    max_embedding_difference: float
    max_token_difference: float
    """Relative to max(1, the largest token value)."""
    embedding_tolerance: float = EMBEDDING_TOLERANCE
    token_tolerance: float = HIDDEN_TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether both differences are within tolerance; NaN is not."""
        return (
            self.max_embedding_difference <= self.embedding_tolerance
            and self.max_token_difference <= self.token_tolerance
        )

    def line(self) -> str:
        """The report for people."""
        return (
            f"{self.modality:<8} {self.session}: {self.cases} cases, "
            f"embeddings differ by at most {self.max_embedding_difference:.1e} "
            f"(allowed {self.embedding_tolerance:.0e}), "
            f"tokens by {self.max_token_difference:.1e} (allowed {self.token_tolerance:.0e})"
        )

    def require(self) -> None:
        """Raise unless parity holds.

        Raises:
            ParityError: it does not.
        """
        if not self.holds:
            raise ParityError(f"Parity does not hold: {self.line()}; do not serve this bundle with this back end.")


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


def verify_golden(
    bundle: Bundle, session_of: Callable[[str], Session], modalities: Sequence[str] | None = None
) -> Iterator[ParityReport]:
    """Replay every modality's golden vectors, for every k, alone and in batches.

    Args:
        session_of: modality to the session under test.
        modalities: replay these alone; None takes all.

    Raises:
        BundleError: the golden file cannot be read, or lacks an array.
    """
    path = bundle.folder / bundle.manifest.golden
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"The golden vectors {path} cannot be read ({error}); export the bundle again.") from None
    for modality in modalities if modalities is not None else bundle.manifest.modalities:
        entry = bundle.manifest.modalities[modality]
        try:
            inputs = {name: arrays[f"{modality}.{name}"] for name in entry.inputs if name != TOKEN_INDEX}
            expected = {name: arrays[f"{modality}.{name}"] for name in OUTPUTS}
        except KeyError as error:
            raise BundleError(f"The golden vectors {path} lack {error}; export the bundle again.") from None
        yield compare(modality, session_of(modality), inputs, expected, room=padding_room(entry.preprocess, inputs))


def padding_room(preprocess: Mapping[str, Any], inputs: Arrays) -> int:
    """How much more padding the golden batch takes: an encoder with learned positions has a longest input."""
    if "mask" not in inputs:
        return 0
    longest: int = preprocess.get("max_length", 1 << 30)
    return min(_MORE_PADDING, longest - int(inputs["mask"].shape[1]))


def compare(
    modality: str,
    session: Session,
    inputs: Arrays,
    expected: Arrays,
    embedding_tolerance: float = EMBEDDING_TOLERANCE,
    room: int = 0,
) -> ParityReport:
    """Run a session on batches cut and padded from ``inputs``, for every k, against ``expected`` at k = N.

    Args:
        room: by how much a batch may be padded further.
    """
    worst_embedding = worst_token = 0.0
    cases = 0
    scale = max(1.0, float(np.abs(expected["tokens"]).max()))
    for rows, batch in _variations(inputs, room):
        for k in range(1, expected["tokens"].shape[1] + 1):
            outputs = session.run({**batch, TOKEN_INDEX: np.arange(k, dtype=np.int64)})
            token = np.abs(outputs["tokens"] - expected["tokens"][rows, :k]).max() / scale
            embedding = np.abs(outputs["embeddings"] - expected["embeddings"][rows, :k]).max()
            worst_token, worst_embedding = (
                float(np.maximum(worst_token, token)),
                float(np.maximum(worst_embedding, embedding)),
            )
            cases += 1
    return ParityReport(modality, session.describe(), cases, worst_embedding, worst_token, embedding_tolerance)


def _variations(inputs: Arrays, room: int) -> Iterator[tuple[slice, Arrays]]:
    """The whole batch; its first row; an odd part; and, where there is a mask, more padding and none."""
    total = len(next(iter(inputs.values())))
    for rows in (slice(0, total), slice(0, 1), slice(0, max(1, total - 1))):
        yield rows, {name: array[rows] for name, array in inputs.items()}
    if "mask" not in inputs:
        return
    if room:
        yield slice(0, total), {name: _padded(array, room) for name, array in inputs.items()}
    for row in range(total):
        length = int(inputs["mask"][row].sum())
        yield slice(row, row + 1), {name: array[row : row + 1, :length] for name, array in inputs.items()}


def _padded(array: NDArray[Any], more: int) -> NDArray[Any]:
    return np.pad(array, [(0, 0), (0, more)] + [(0, 0)] * (array.ndim - 2))
