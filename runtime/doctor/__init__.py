"""What serves a bundle on this machine, how well, and with which k.

In: a bundle and a goal. Out: measurements of every backend and precision, and a recommendation.
"""
