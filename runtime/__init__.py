"""Serving without PyTorch.

In: a bundle and raw items. Out: vectors, in Python, in files, in indexes and over HTTP.
"""

from fluxtalk.runtime.backends.options import BACKENDS
from fluxtalk.runtime.backends.session import FakeSession, Session
from fluxtalk.runtime.embedder import Embedder, load
from fluxtalk.runtime.vectors import DTYPES, hamming, maxsim, quantize, similarity
from fluxtalk.tokens import OUTPUT_KINDS

__all__ = [
    "BACKENDS",
    "DTYPES",
    "OUTPUT_KINDS",
    "Embedder",
    "FakeSession",
    "Session",
    "hamming",
    "load",
    "maxsim",
    "quantize",
    "similarity",
]
