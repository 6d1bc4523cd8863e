"""One training at a time in a run's folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from fluxtalk.errors import UsageError
from fluxtalk.train.records.run_folder import RunFolder


@contextmanager
def only_writer(folder: RunFolder) -> Iterator[None]:
    """Hold a run's folder, made where it is missing, against other trainings.

    The kernel lets go of it when the process ends, however it ends.

    Raises:
        UsageError: another training holds it.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    # On a file that is open for writing: NFS knows no exclusive lock on anything else.
    with folder.log.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another training is writing to {folder.root}; wait until it ends, or choose another --log_name."
            ) from None
        yield
