"""TensorRT engines compiled from the graphs of a bundle.

In: a bundle and optimization profiles. Out: engines with a record of what they fit.
"""
