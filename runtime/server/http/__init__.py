"""The way from the socket to a decoded body, for requests of any kind.

In: bytes from strangers. Out: bodies within limits of time and size, and errors in the dialect of the path.
"""
