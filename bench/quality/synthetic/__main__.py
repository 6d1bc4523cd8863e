"""`python -m bench.quality.synthetic`."""

from bench.quality.synthetic.cli import main

main()
