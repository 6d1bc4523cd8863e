"""CPU time to decode and check large bodies of `/v1/embeddings`, without a server.

``python -m bench.server.bodies --bundle BUNDLE``: milliseconds of the reading thread, the best of five, for bodies of
the sizes that cost something. Run it on two commits in turn, and compare within one such run.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import click
import numpy as np

from fluxtalk.artifacts.bundle import read_bundle
from fluxtalk.runtime.server.api.routes import read_json_body
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import ApiError

_KINDS = {"image": "image", "text": "text", "features": "features"}
_ROUNDS = 5
_OF_ONE = 2000
"""Bodies of one text that are read in a round: a single one is too short for the clock."""


@click.command()
@click.option("--bundle", default="runs/demo/bundle", type=click.Path(path_type=Path), show_default=True)
def main(bundle: Path) -> None:
    """Time the reading of each body."""
    manifest = read_bundle(bundle).manifest
    model = ServedModel(("bundle",), manifest.bundle_hash, 0, "fp32", _KINDS, manifest, 2048)
    for name, body in bodies().items():
        repeats = _OF_ONE if len(body) < 1000 else 1
        times = []
        for _ in range(_ROUNDS):
            started = time.thread_time()
            for _ in range(repeats):
                read(body, model)
            times.append((time.thread_time() - started) / repeats)
        click.echo(f"{name:<22}{len(body) / 1e6:8.1f} MB {1e3 * min(times):10.4f} ms")


def bodies() -> dict[str, bytes]:
    """Make the bodies, by what is in them."""
    rng = np.random.default_rng(0)
    images = [base64.b64encode(rng.bytes(750_000)).decode() for _ in range(32)]
    features = rng.standard_normal((64, 77, 512)).astype(np.float32).tolist()
    content = {
        "one text": {"input": "snowman", "encoding_format": "base64"},
        "2,048 texts": {"input": [f"a photo of a cat, number {i}" for i in range(2048)]},
        "32 images": {"input": images, "modality": "image"},
        "features 64 x 77 x 512": {"input": features, "modality": "features"},
    }
    encoded = {name: json.dumps(body).encode() for name, body in content.items()}
    return {**encoded, "lists of one number": b'{"input": [' + b",".join([b"[1]"] * 5_000_000) + b"]}"}


def read(body: bytes, model: ServedModel) -> None:
    """Read a body as a request; the last one has too many items, which is found after it was decoded."""
    try:
        read_json_body(body, "", [], model)
    except ApiError as error:
        if error.code != "too_many_items":
            raise


if __name__ == "__main__":
    main()
