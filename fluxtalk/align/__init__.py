"""One command from pairs and encoders to a verified bundle: `fluxtalk align`.

In: an `AlignRequest`. Out: a folder: encoders, run, evaluation, bundle, model card, and a record of what made each.
Every stage is a function that another command has already; this room decides what is to be done, with which options.
"""
