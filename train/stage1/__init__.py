"""Stage 1: frozen encoders into one checkpoint.

In: a specification of encoders, weights and preprocessing. Out: a `.pth` that holds tensors and plain types only.
"""
