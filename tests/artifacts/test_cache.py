"""A feature cache's manifest as earlier versions wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.cache import CacheKey, CacheManifest, CacheShard, read_manifest

WRITTEN: dict[str, Any] = {
    "format": "fluxtalk.features",
    "schema_version": 2,
    "key": {
        "encoder": "34963dcd405f86fb090bb182b1d2120e4b502a527a8bed0caf17c1ee9aaaef37",
        "preprocessing": "77acf06a8d7f2d50fe5445972b65e4af2663801d9fb23e33189feaf6c5a57de6",
        "data": "hash",
        "split": "train",
        "modality": "sound",
        "dtype": "fp16",
        "reduction": "23df40c8eb844b5340a98e54e936d514cf6d833230ec5f82d287fb57efcaeec0",
    },
    "dim": 6,
    "items": 4,
    "vectors": 10,
    "items_per_shard": 9,
    "reduction": {"dim": 6, "pool": 1, "pca": 0},
    "pairs_sha256": "59f0270cad459270b1688d57b552dc4adc4e14e8f5559299cb3c8621a4fe7c4f",
    "shards": [
        {
            "key": "d6f652f4fd88360ca36e6e143d9a7f7f451c96e43322feddd8df694b09b70f47",
            "start": 0,
            "items": 4,
            "vectors": 10,
            "sha256": {
                "00000.values.npy": "5805dad4f0d5ca6341538d7be3fdbb1e32df52f9099de7beb4eafa90051955d7",
                "00000.lengths.npy": "059950e07374a679a3a69d6891a0174ddc01515f5babaaedbf830466605bfef8",
            },
        }
    ],
    "content_hash": "e6843593b26ed4839de2b2433e0f2a06db0f18dc14e769a64aec2f29e1a0d471",
}
"""The manifest that version 0.1.0 wrote on 2026-11-29 for the first four arrays of `ragged`."""


def test_a_manifest_of_before_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(WRITTEN))
    manifest = read_manifest(tmp_path)
    assert manifest == CacheManifest(
        key=CacheKey(**WRITTEN["key"]),
        dim=6,
        items=4,
        vectors=10,
        items_per_shard=9,
        reduction={"dim": 6, "pool": 1, "pca": 0},
        pairs_sha256=WRITTEN["pairs_sha256"],
        shards=(CacheShard(**WRITTEN["shards"][0]),),
    )
    manifest.write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == WRITTEN


def test_a_key_names_the_folder_that_it_named_before() -> None:
    key = CacheKey(**WRITTEN["key"])
    assert key.hash() == WRITTEN["shards"][0]["key"]
    assert key.folder(Path("c")) == Path("c/features/sound-train-d6f652f4fd88360c")
