"""Memory and time of training and of its feature cache.

In: committed encoders. Out: ratios and memory, as JSON.
"""
