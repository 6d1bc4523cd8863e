"""`python -m bench.quality.glyphs`."""

from bench.quality.glyphs.cli import main

main()
