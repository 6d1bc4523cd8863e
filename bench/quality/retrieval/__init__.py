"""The proof on retrieval: register tokens beside other heads, at equal bytes, by what a query names.

In: data sets of single things and of several. Out: recall against bytes for each head, over seeds, with bounds.
"""
