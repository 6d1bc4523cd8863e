"""Frozen features: encoded once, cached, memory-mapped.

In: a stage 1 checkpoint and a data set. Out: `FeatureSource`: features and masks of any rows, at any time.
"""
