"""`python -m bench.server`."""

from bench.server.run import main

main()
