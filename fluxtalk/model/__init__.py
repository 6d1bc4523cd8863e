"""PyTorch modules: frozen encoders, the register head, losses, checkpoints.

In: preprocessed arrays, or frozen features. Out: tokens, embeddings and loss terms, in eager PyTorch.
"""
