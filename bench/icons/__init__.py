"""Icons and emoji with their names and tags: a real data set that needs no hub.

In: packages of npm, or of PyPI if npm is missing. Out: pictures, tables of pairs, albums, scenes and spoken names.
"""
