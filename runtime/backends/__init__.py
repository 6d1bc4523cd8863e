"""Backends that run a bundle's graphs: one `Session` interface, a file per library, and the choice between them.

In: a bundle and `BackendOptions`. Out: an open `Session` for each modality.
"""
