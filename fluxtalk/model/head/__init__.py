"""The register head: attention, nested dropout, pooling.

In: frozen features (batch, length, dim) with a mask. Out: ordered tokens (batch, k, dim) for every modality.
"""
