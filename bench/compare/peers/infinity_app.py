"""The model behind Infinity's own server, with its batching and its engine.

``python infinity_app.py PORT '{"model": ..., "threads": ..., "serving": {...}}'``, where ``serving`` has what the
``EngineArgs`` of Infinity take besides.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn


def build(given: dict[str, Any]) -> Any:
    """Make Infinity's application, with a route that says when it is ready."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(given["threads"])
    # Infinity hands the graph's path on as it found it, and optimum takes no path but one below the model's folder.
    os.chdir(given["model"])
    arguments = importlib.import_module("infinity_emb.args").EngineArgs(
        model_name_or_path=".",
        served_model_name=Path(given["model"]).name,
        device="cpu",
        **given["serving"],
    )
    server = importlib.import_module("infinity_emb.infinity_server")
    app = server.create_server(engine_args_list=[arguments], url_prefix="/v1")

    app.add_api_route("/readyz", _ready)  # the socket opens when the engine has started
    return app


def _ready() -> dict[str, bool]:
    return {"ready": True}


if __name__ == "__main__":
    uvicorn.run(build(json.loads(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
