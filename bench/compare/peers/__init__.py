"""Scripts that run in a contender's own environment, where nothing of this repository is installed.

In: the name of a contender and its model. Out: times and vectors through pipes, or an HTTP server.
"""
