"""The proof on glyphs.

In: committed encoders. Out: recall by k beside baselines, and probes with controls.
"""
