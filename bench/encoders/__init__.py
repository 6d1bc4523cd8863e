"""Real encoders from ordinary packages, and the proof that FluxTalk takes them.

In: encoders that their own libraries build or ship. Out: a table of what was packed, trained, exported and compiled.
"""
