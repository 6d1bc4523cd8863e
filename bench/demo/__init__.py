"""The whole path on real input, as `make demo` runs it.

In: the built-in data set and committed encoders. Out: a run, a bundle, an index, tables and pictures.
"""
