"""Pictures of the data set: things in their styles, and what an exported bundle finds for texts.

In: a data set that was built, and a bundle. Out: PNG files of pictures whose license lets anyone show them.
"""
