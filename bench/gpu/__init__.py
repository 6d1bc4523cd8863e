"""Everything that needs a CUDA device, in one command.

In: a machine with a GPU. Out: what was executed, measured and could not be done, as JSON.
"""
