"""A contender behind LitServe, which gathers single texts into batches by itself.

``python litserve_app.py PORT JSON``, as ``app.py``, where ``serving`` has LitServe's ``max_batch_size``,
``batch_timeout`` in seconds, and ``fast_queue``. The endpoint has OpenAI's shape, for one text at a time: LitServe's
own specification of it does not go with batches of several requests.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import litserve  # type: ignore[import-not-found]


class Embeddings(litserve.LitAPI):  # type: ignore[misc]
    """Texts to normalized vectors, in LitServe's process for inference."""

    def __init__(self, given: dict[str, Any]) -> None:
        serving = given["serving"]
        super().__init__(
            max_batch_size=serving["max_batch_size"],
            batch_timeout=serving["batch_timeout"],
            api_path="/v1/embeddings",
        )
        self._given = given

    def setup(self, device: str) -> None:
        """Load the encoder."""
        from encoders import load  # type: ignore[import-not-found]

        self._encode = load(self._given["loader"], self._given["model"], self._given["threads"], self._given["options"])
        self._encode(["a first text"])

    # Requests are read and answers written by LitServe's own defaults: annotations of an override would become models
    # that FastAPI checks every body against.

    def batch(self, inputs: list[dict[str, Any]]) -> list[str]:
        """Take the texts out of the bodies of several requests; the library pads them."""
        return [body["input"] for body in inputs]

    def predict(self, texts: list[str]) -> Any:
        """Embed the texts of a batch."""
        return self._encode(texts)

    def unbatch(self, vectors: Any) -> list[dict[str, Any]]:
        """Write vectors (B, D) as B answers in OpenAI's shape."""
        return [
            {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": vector.tolist()}]}
            for vector in vectors
        ]


if __name__ == "__main__":
    described = json.loads(sys.argv[2])
    litserve.LitServer(
        Embeddings(described),
        accelerator="cpu",
        healthcheck_path="/readyz",
        fast_queue=described["serving"]["fast_queue"],
    ).run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
