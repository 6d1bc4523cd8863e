"""Search indexes on disk.

In: vectors or tokens with the names of their items. Out: the nearest items to a query from any modality.
"""
