"""`python -m bench.gpu`, or `python bench/gpu` from a source tree that is not installed."""

import sys
from pathlib import Path

if not __package__:
    # Run as a folder: it gives way to the source tree, because its files are named like other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.gpu.cli import main

sys.exit(main())
