"""The proof on a synthetic truth.

In: factors that are known. Out: what each token recovers of them.
"""
