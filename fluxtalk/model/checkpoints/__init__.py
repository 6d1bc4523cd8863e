"""Checkpoints of both stages, and a finished run opened from them.

In: modules and their configuration. Out: verified files, and the same modules built from them.
"""
