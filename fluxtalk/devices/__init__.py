"""NVIDIA devices and their compilers, reached without PyTorch.

In: nothing but what is installed. Out: the compute capability, and one adapter over both TensorRT libraries.
"""
