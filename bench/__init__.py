"""The demo, and every figure in the documents: each comes from a module here, with machine and date.

In: runs, bundles or random weights. Out: results in `bench/results/`, tables and pictures.
"""
