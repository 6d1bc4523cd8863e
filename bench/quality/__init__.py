"""Proofs of what the tokens hold: ordered, shared, private.

In: synthetic truth or glyphs. Out: tables and pictures with controls, over several seeds.
"""
