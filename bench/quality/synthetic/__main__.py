"""`python -m bench.quality.synthetic`."""

from bench.quality.synthetic.run import main

main()
