"""Serving: a bundle in, vectors out. Torch-free."""

from fluxtalk.runtime.backends import BACKENDS
from fluxtalk.runtime.embedder import OUTPUT_KINDS, Embedder, load
from fluxtalk.runtime.session import FakeSession, Session
from fluxtalk.runtime.vectors import DTYPES, hamming, maxsim, quantise, similarity

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
    "quantise",
    "similarity",
]
