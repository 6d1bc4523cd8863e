"""The HTTP server over one bundle, without PyTorch. In: requests. Out: vectors, search results, metrics.

A request's way: `http.protocol` (headers, in time) -> `http.middleware` (metrics, failures, host, key) -> `api.routes`
-> `answering` (body, in time and size) -> `http.json_body` (JSON to a struct)
-> `api.openai_embeddings` (a typed request) -> `execution.dispatcher` (admission)
-> `execution.decode_pool` (decoding, in threads of its own) -> `execution.batcher` (one thread per modality)
-> `api.answers`.
"""
