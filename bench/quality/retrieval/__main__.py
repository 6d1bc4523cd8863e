"""`python -m bench.quality.retrieval`."""

from bench.quality.retrieval.cli import main

if __name__ == "__main__":
    main()
