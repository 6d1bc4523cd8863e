"""A contender behind FastAPI and uvicorn, as its users write it: one endpoint of OpenAI's shape.

``python app.py PORT '{"loader": ..., "model": ..., "threads": ..., "options": {...}}'``
"""

from __future__ import annotations

import json
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Request(BaseModel):
    """Body of a request."""

    input: str | list[str]
    model: str = ""


def build(given: dict[str, Any]) -> FastAPI:
    """Load the encoder and make the application."""
    from encoders import load  # type: ignore[import-not-found]

    encode = load(given["loader"], given["model"], given["threads"], given["options"])
    encode(["a first text"])
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    # Not async: FastAPI then calls it in its pool of threads, and the library does not block the loop.
    @app.post("/v1/embeddings")
    def embeddings(request: Request) -> dict[str, Any]:
        items = [request.input] if isinstance(request.input, str) else request.input
        vectors = encode(items)
        data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
        return {"object": "list", "model": request.model, "data": data}

    return app


if __name__ == "__main__":
    uvicorn.run(build(json.loads(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
