"""Faces that other libraries know, over the public API of `fluxtalk.runtime`: one module for each library.

In: a loaded bundle. Out: what LangChain, LlamaIndex, Haystack and sentence-transformers call an embedding model, and
Ray Data a step.
A module imports its library, so this package imports none of them.
"""
