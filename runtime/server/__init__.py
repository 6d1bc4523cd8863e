"""The HTTP server over one bundle. Torch-free.

A request's way: `protocol` (headers, in time) -> `guard` (key, metrics, errors) -> `endpoint` (body, in time and size)
-> `dialects` (JSON to a typed request) -> `engine` (admission) -> `preparation` (decoding, in its own threads)
-> `batcher` (one thread per modality) -> `openai_embeddings` (the answer).
"""
