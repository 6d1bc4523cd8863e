"""Other libraries' preprocessing, read into ours: image processors, tokenizers, feature extractors, transforms.

In: their configuration, or their loaded object. Out: a preprocessor that gives what theirs gives, or a refusal.
"""
