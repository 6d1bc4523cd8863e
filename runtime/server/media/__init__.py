"""Image and sound files of strangers. In: the bytes of a file. Out: its array, or one sentence.

What a look at the header proves cheap is decoded in this process; everything else in processes that can be killed.
"""
