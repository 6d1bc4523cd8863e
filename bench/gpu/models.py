"""Subjects of `bench.gpu`: bundles of the demo's size and larger, with the same modules in eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.latency.vit import vit_small
from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import ImagePreprocessor, Preprocessor, TextPreprocessor

VOCABULARY = 30_522


@dataclass
class Subject:
    """One bundle, and its modules if they are known."""

    name: str
    bundle: Bundle
    eager: Mapping[str, EagerEmbedder] = field(default_factory=dict)
    """Modality to its eager module, on the CPU in float32."""
    lengths: tuple[int, ...] = (1, 2, 7, 16)
    """Text lengths that parity is tried with; those beyond the longest are left out."""
    length: int = 8
    """Text length that is timed."""

    def batch(self, modality: str, batch: int, length: int, seed: int = 0) -> Arrays:
        """A random batch made of the golden one's items, of lengths up to ``length``; without ``token_index``."""
        golden = self.bundle.golden.batch[modality].inputs
        rng = np.random.default_rng([seed, batch, length])
        rows = rng.integers(0, len(next(iter(golden.values()))), batch)
        taken = {name: array[rows] for name, array in golden.items()}
        if "mask" not in taken:
            return {name: np.ascontiguousarray(array) for name, array in taken.items()}
        repeats = -(-length // taken["mask"].shape[1])
        mask = np.arange(length) < rng.integers(1, length + 1, (batch, 1))
        mask[0] = True
        result = {}
        for name in golden:
            array = np.concatenate([taken[name]] * repeats, axis=1)[:, :length]
            wide = mask.reshape(mask.shape + (1,) * (array.ndim - 2))
            result[name] = mask if name == "mask" else np.where(wide, array, 0).astype(array.dtype)
        return result

    def longest(self, modality: str) -> int:
        """The longest input of a modality."""
        return self.bundle.manifest.modalities[modality].max_length or max(self.lengths)

    def tried_lengths(self, modality: str) -> list[int]:
        """Lengths that a modality's parity is tried with; images have none."""
        if not self.bundle.manifest.modalities[modality].has_length:
            return [0]
        longest = self.longest(modality)
        return sorted({length for length in (*self.lengths, longest) if length <= longest})


class TextTransformer(nn.Module):
    """A text encoder of MiniLM-L6's size with random weights: BERT's layers, 6 of width 384 with 12 heads."""

    def __init__(self, dim: int = 384, depth: int = 6, heads: int = 12, longest: int = 128) -> None:
        super().__init__()
        self.dim = dim
        self.word = nn.Embedding(VOCABULARY, dim)
        self.position = nn.Parameter(torch.randn(longest, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(_Layer(dim, heads) for _ in range(depth))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """int64 (B, L) and bool (B, L) to (B, L, dim)."""
        x: Tensor = self.norm(self.word(input_ids) + self.position[: input_ids.shape[1]])
        bias = torch.where(mask, 0.0, -1e4).to(x.dtype)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        return x


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, dim = x.shape
        shape = batch, length, 3, self.heads, dim // self.heads
        query, key, value = self.projections(x).view(shape).permute(2, 0, 3, 1, 4)
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = self.first(x + self.out(read.transpose(1, 2).reshape(batch, length, dim)))
        result: Tensor = self.second(x + self.feed_forward(x))
        return result


def text_small() -> TextTransformer:
    """The text encoder, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextTransformer()


def large_embedders() -> dict[str, tuple[EagerEmbedder, Preprocessor]]:
    """ViT-S/16 and the text encoder under one head of width 512 with 8 heads and 4 tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, **{str(i): i for i in range(1, 100)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    preprocess: dict[str, Preprocessor] = {
        "image": ImagePreprocessor(224, 224),
        "text": TextPreprocessor(tokenizer.to_str(), 128),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = RegisterTokenModule({"image": 384, "text": 384}, dim=512, heads=8)
    encoders = {"image": vit_small(), "text": text_small()}
    return {
        name: (EagerEmbedder(FrozenEncoder(encoders[name], part, 384), head, name), part)
        for name, part in preprocess.items()
    }


def write_large_bundle(folder: Path, precisions: tuple[str, ...]) -> Subject:
    """Export the large embedders: random weights have nothing to recall, so there is no quality gate to hold."""
    from fluxtalk.artifacts.bundle import OUTPUTS, Manifest, ModalityEntry, PrecisionEntry, read_bundle, write_manifest
    from fluxtalk.artifacts.files import hash_file, write_atomically
    from fluxtalk.artifacts.golden import GoldenCase, GoldenVectors, golden_bytes
    from fluxtalk.export.graph.to_onnx import export_onnx, graph_files, input_specs
    from fluxtalk.export.options import DEFAULT_OPSET
    from fluxtalk.export.precision.convert import convert
    from fluxtalk.scoring.parity import TOLERANCES

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    items: dict[str, list[Any]] = {
        "image": list(rng.integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)),
        "text": [" ".join(map(str, rng.integers(1, 100, length))) for length in (64, 32, 16, 5)],
    }
    embedders = large_embedders()
    entries, golden = {}, {}
    for name, (embedder, preprocess) in embedders.items():
        inputs = preprocess.collate([preprocess.prepare(item) for item in items[name]])
        golden[name] = GoldenCase(inputs, dict(zip(OUTPUTS, embedder.embed_arrays(inputs, 4), strict=True)))
        # What `nn.TransformerEncoder` does in one call without gradients cannot be exported, and is not to be slowed.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            graph = export_onnx(embedder, preprocess, inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        files = {precision: f"{name}.{precision}.onnx" for precision in precisions}
        for precision, file in files.items():
            graph_files(convert(graph, precision, "", ()), folder, file)
        settings, texts = preprocess.to_parts()
        for file, content in texts.items():
            write_atomically(folder / f"{name}.{file}", content)
        entries[name] = ModalityEntry(
            files,
            input_specs(graph),
            settings.get("max_length"),
            settings,
            {file: f"{name}.{file}" for file in texts},
        )
    write_atomically(folder / "golden.safetensors", golden_bytes(GoldenVectors(golden, {})))
    manifest = Manifest(
        num_register_tokens=4,
        num_overlapping_tokens=3,
        trained_register_tokens=4,
        dim=512,
        opset=DEFAULT_OPSET,
        outputs=[*OUTPUTS],
        precisions={name: PrecisionEntry(TOLERANCES[name]) for name in precisions},
        modalities=entries,
        files={path.name: hash_file(path) for path in sorted(folder.iterdir())},
        golden="golden.safetensors",
        stage1_hash="random",
        head_hash="random",
        identity={},
    )
    write_manifest(folder, manifest)
    eager = {name: embedder for name, (embedder, _) in embedders.items()}
    return Subject("large", read_bundle(folder), eager, lengths=(1, 16, 64), length=64)
