"""Scores in numpy: retrieval, and parity between implementations.

In: embeddings or tokens. Out: recall by k, and the differences between two backends against their tolerance.
"""
