"""The embedding routes, each dialect beside its schema.

In: bodies. Out: typed requests for `execution`, and answers in the dialect of the request.
"""
