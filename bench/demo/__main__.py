"""`python -m bench.demo`."""

from bench.demo.cli import main

main()
