"""Search and attention over HTTP, each route beside its schema.

In: a request about one item. Out: nearest items of the served indexes, thumbnails, attention maps.
"""
