"""`python -m bench.quality.glyphs`."""

from bench.quality.glyphs.run import main

main()
