"""Typed requests to vectors: admission, decoding, batches.

In: `EmbedRequest`. Out: `Answer`; nothing here knows HTTP bodies.
"""
