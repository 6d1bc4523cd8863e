"""Training losses as pure functions, and the module that adds them up.

In: tokens of several modalities with the ids of their items. Out: scalar loss terms.
"""
