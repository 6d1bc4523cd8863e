"""``torchrun --nproc-per-node=N -m fluxtalk.train ...`` and ``python -m fluxtalk.train ...``."""

from fluxtalk.train.cli import main

main()
