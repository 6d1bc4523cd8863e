"""FluxTalk side by side with what users would pick instead, each contender in an environment of its own.

In: a bundle with a real text encoder, and that encoder's folder. Out: ratios, for docs/benchmarks.md.
"""
