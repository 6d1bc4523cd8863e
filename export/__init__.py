"""Export of a trained run to a bundle that serves without PyTorch, and of a bundle to engines and Triton.

In: a run and a data set, or a bundle. Out: a bundle whose parity and quality were measured, engines, a repository.
"""
