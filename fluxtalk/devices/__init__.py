"""The processor, its memory, NVIDIA devices and their compilers, reached without PyTorch.

In: what is installed. Out: what the processor is, the memory that is left, the compute capability of the GPU, and one
adapter over both TensorRT libraries.
"""
