"""Results of finished runs: evaluation, baselines, comparison.

In: runs and data sets. Out: recall by k, tables and pictures.
"""
