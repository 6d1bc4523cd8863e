"""`python -m bench.icons`."""

from bench.icons.cli import main

main()
