"""A run's folder: who may write it, what it holds, and reading it back without torch.

In: configuration and figures of a run. Out: its files, and the same as typed records.
"""
