"""Artifacts on disk, torch-free: the only place that knows their paths and schemas.

In: typed values of a stage. Out: files that are whole or absent, and the same values read back and verified.
"""
