"""One command for all that needs a CUDA device.

In: a machine with a GPU. Out: what was executed, measured and could not be done, as JSON.
"""
