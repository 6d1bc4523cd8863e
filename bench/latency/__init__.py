"""Latency and size of bundles, backends and parts of them.

In: bundles or graphs with random weights. Out: ratios of one run on one machine, as JSON.
"""
