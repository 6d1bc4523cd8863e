"""Tables of pairs as a data set.

In: a CSV, JSON Lines or Parquet file. Out: a `PairDataset`, or one report of everything that is wrong with it.
"""
