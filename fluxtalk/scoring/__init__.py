"""Scores in numpy: retrieval, and parity between implementations.

In: embeddings or tokens. Out: recall by k, and how far two backends are apart.
"""
