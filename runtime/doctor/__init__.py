"""`fluxtalk doctor`: trials of a bundle on every backend of this machine.

In: a bundle and a goal. Out: parity, times and memory in every backend and precision, and a recommendation with a k.
"""
