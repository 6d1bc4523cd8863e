"""Every error that FluxTalk raises on purpose.

::

    FluxTalkError                  exit code 1
    ├── UsageError                 exit code 2   an option or argument that has no meaning
    │   └── TokenCountError        exit code 2   k outside 1..N (also a ValueError)
    ├── InputError                 exit code 1   one raw input: empty text, unreadable image
    │   └── TooLargeError          exit code 1   ... that takes more memory than it may
    ├── DataError                  exit code 1   a data set: missing files, bad columns
    ├── ArtifactError              exit code 1   a file of ours: missing, foreign, changed
    │   ├── CheckpointError                      stage 1, stage 2
    │   ├── BundleError                          an exported bundle
    │   └── IndexFileError                       a search index
    ├── BackendError               exit code 1   a library or device is missing, does not fit, or failed
    ├── ParityError                exit code 1   two implementations disagree
    ├── QualityError               exit code 1   a precision costs more than it may
    │   └── IncompleteError        exit code 3   ... and the bundle was written without it
    └── TrainingError              exit code 1   training cannot go on (NaN loss)

A message is one sentence that says what was expected, what came, and what to do.
"""

from __future__ import annotations


class FluxTalkError(Exception):
    """Base of every deliberate error; a command line prints it without a traceback."""

    exit_code = 1


class UsageError(FluxTalkError):
    """An option, argument or combination of them that has no meaning."""

    exit_code = 2


class TokenCountError(UsageError, ValueError):
    """``k`` is not in the range of tokens that the model or bundle holds."""


class InputError(FluxTalkError):
    """A raw input (text, image, feature array) that cannot be encoded."""


class TooLargeError(InputError):
    """A raw input that takes more memory than it may."""


class DataError(FluxTalkError):
    """A data set that cannot be used as it is."""


class ArtifactError(FluxTalkError):
    """A file written by FluxTalk that is missing, changed, truncated or foreign."""


class CheckpointError(ArtifactError):
    """A stage 1 or stage 2 checkpoint that cannot be used."""


class BundleError(ArtifactError):
    """An exported bundle that cannot be used."""


class IndexFileError(ArtifactError):
    """A search index that cannot be used, or belongs to another bundle."""


class BackendError(FluxTalkError):
    """A library, device or execution provider that is missing, does not fit, or failed at its work."""


class ParityError(FluxTalkError):
    """Two implementations that must agree do not."""


class QualityError(FluxTalkError):
    """A lower precision that loses more quality than is allowed, or whose quality could not be measured."""


class IncompleteError(QualityError):
    """A bundle that was written, without the precisions that did not pass."""

    exit_code = 3


class TrainingError(FluxTalkError):
    """Training that cannot go on."""


def reason(error: BaseException) -> str:
    """First line of a library's message, without its full stop; the type's name if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
