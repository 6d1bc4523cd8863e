"""Serving: a bundle in, vectors out. Torch-free."""

from fluxtalk.runtime.embedder import BACKENDS, OUTPUT_KINDS, Embedder, load
from fluxtalk.runtime.session import FakeSession, Session

__all__ = ["BACKENDS", "OUTPUT_KINDS", "Embedder", "FakeSession", "Session", "load"]
