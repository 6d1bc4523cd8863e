"""A run's records: beginning and resuming in its folder, its log, and reading them back without torch.

In: configuration and figures of a run. Out: its files, and the same as typed records.
"""
