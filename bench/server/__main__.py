"""`python -m bench.server`."""

from bench.server.cli import main

main()
