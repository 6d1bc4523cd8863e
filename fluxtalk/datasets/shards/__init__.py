"""WebDataset shards as a data set.

In: a row of tar files. Out: a `PairDataset` whose items are read one member at a time, or a stream of samples.
"""
