"""Many items from files, embedded into files.

In: arguments, lists, folders or tables of raw items. Out: vectors in `.npy` or Parquet, resumable.
"""
