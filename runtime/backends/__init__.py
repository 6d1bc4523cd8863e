"""What runs a graph: one `Session` seam, a file per library behind it, and the choice between them.

In: a bundle and what is wished for. Out: open sessions, arrays in and arrays out.
"""
