"""A contender in a process of its own: it loads, says that it is ready, and times what it is given.

``python worker.py '{"loader": ..., "model": ..., "threads": ..., "options": {...}}'``. It answers each line of JSON,
``{"items": [...], "save": FILE or null}``, with one line: the milliseconds of one call, and the resident memory.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


def resident_mib() -> float:
    """Resident memory of this process, in MiB."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return int(status.read().partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    """Serve one parent over standard input and output."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from encoders import load  # type: ignore[import-not-found]

    given = json.loads(sys.argv[1])
    encode = load(given["loader"], given["model"], given["threads"], given["options"])
    np: Any = importlib.import_module("numpy")
    for line in sys.stdin:
        asked = json.loads(line)
        begin = time.perf_counter()
        vectors = encode(asked["items"])
        took = time.perf_counter() - begin
        if asked["save"]:
            np.save(asked["save"], np.asarray(vectors, dtype=np.float32))
        print(json.dumps({"ms": 1e3 * took, "resident_mib": resident_mib()}), file=answers)


if __name__ == "__main__":
    main()
