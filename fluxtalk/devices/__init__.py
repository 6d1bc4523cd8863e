"""NVIDIA devices and their compilers, reached without PyTorch.

In: what is installed. Out: the compute capability of the GPU, and one adapter over both TensorRT libraries.
"""
