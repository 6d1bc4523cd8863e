"""Load, overload and faults of a running server.

In: a bundle. Out: throughput, latency and what was promised and kept.
"""
