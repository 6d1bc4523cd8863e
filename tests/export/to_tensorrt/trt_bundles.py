"""Small bundles of every kind of encoder, to compile: real graphs, no training, no golden vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import (
    OUTPUTS,
    Bundle,
    Manifest,
    ModalityEntry,
    PrecisionEntry,
    graph_name,
    read_bundle,
    write_manifest,
)
from fluxtalk.artifacts.files import hash_file, write_atomically
from fluxtalk.export.graph.to_onnx import graph_files, input_specs
from fluxtalk.export.options import DEFAULT_OPSET
from fluxtalk.export.precision.convert import convert
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder, build_encoder
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor, ImagePreprocessor, Preprocessor, TextPreprocessor
from fluxtalk.scoring.parity import TOLERANCES
from fluxtalk.tokens import ATTENTION
from tests.traced import traced_once

DIM = 32
MAX_LENGTH = 24
DEEP: dict[str, Any] = {
    "output_projection": "per_register",
    "block_weights": "per_modality",
    "self_attention": True,
    "depth": 2,
    "mean_path": "mlp",
    "summary_registers": 0,
    "others": {"taste": 5},
}
"""Options of a head that others leave alone, and one more modality, whose weights must not be taken."""
WORDS = ("[UNK]", "small", "letter", "a", "b")
GOLDEN = "golden.safetensors"


class _Block(nn.Module):
    """Attention and feed-forward; norms in front, as in ViT, or behind, as in BERT."""

    def __init__(self, dim: int, heads: int, norm_first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm_first = norm_first
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.norms = nn.ModuleList([nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-12)])

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        first, second = self.norms
        if self.norm_first:
            x = x + self._attend(first(x), bias)
            x = x + self.feed_forward(second(x))
        else:
            x = first(x + self._attend(x, bias))
            x = second(x + self.feed_forward(x))
        return x

    def _attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        read = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        attended: Tensor = self.out(read.transpose(1, 2).reshape(batch, length, dim))
        return attended


class PatchEncoder(nn.Module):
    """A small ViT: a convolution to patches, a class token, learned positions."""

    def __init__(self, size: int = 32, patch: int = 8, dim: int = 24, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, stride=patch)
        self.first = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim))
        self.blocks = nn.ModuleList(_Block(dim, 4, norm_first=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) to (B, 1 + patches, dim)."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features


class WordEncoder(nn.Module):
    """A small BERT: word, position and segment embeddings, norms behind, padding masked by an additive bias."""

    def __init__(self, dim: int = 24, depth: int = 2) -> None:
        super().__init__()
        self.word = nn.Embedding(len(WORDS), dim)
        self.position = nn.Embedding(64, dim)
        self.segment = nn.Embedding(2, dim)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(_Block(dim, 4, norm_first=False) for _ in range(depth))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """int64 (B, L) and bool (B, L) to (B, L, dim)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x: Tensor = self.word(input_ids) + self.position(places) + self.segment(torch.zeros_like(places))
        bias = torch.where(mask, 0.0, -1e4)[:, None, None, :]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, bias)
        return x


class MaskedEncoder(nn.Module):
    """A small BERT of transformers: attention takes one boolean mask, made of rules about which place may see which."""

    def __init__(self, dim: int = 24, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.word = nn.Embedding(len(WORDS), dim)
        self.blocks = nn.ModuleList(_Block(dim, heads, norm_first=False) for _ in range(depth))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """int64 (B, L) and bool (B, L) to (B, L, dim)."""
        x: Tensor = self.word(input_ids)
        batch, length = input_ids.shape
        rows = torch.arange(batch, device=x.device)[:, None, None, None]
        queries = torch.arange(length, device=x.device)[None, None, :, None]
        keys = torch.arange(length, device=x.device)[None, None, None, :]
        everywhere = queries.new_ones((), dtype=torch.bool) & (queries >= 0)
        seen = (everywhere & mask[rows, keys]).expand(batch, -1, length, length)
        for block in self.blocks:
            x = block(x, seen)
        return x


@dataclass(frozen=True)
class Kind:
    """An encoder, its preprocessing, and two items."""

    source: str
    dim: int
    preprocess: Preprocessor
    items: Sequence[Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    pool: int = 1

    def sample(self) -> Arrays:
        """The two items, as a batch."""
        return self.preprocess.collate([self.preprocess.prepare(item) for item in self.items])


def kinds() -> dict[str, Kind]:
    """Modality to an encoder of each kind that the exporter supports."""
    here = "module:tests.export.to_tensorrt.trt_bundles"
    photos = [np.zeros((32, 32, 3), np.uint8)] * 2
    texts = ["small letter a", "b letter"]
    vectors = [np.ones((5, 12), np.float32), np.ones((3, 12), np.float32)]
    small = {"dim": 24, "depth": 1, "heads": 4}
    return {
        "image": Kind("small-image", 24, ImagePreprocessor(32, 32), photos, {**small, "size": 32, "channels": 3}),
        "text": Kind("small-text", 24, _words(), texts, {**small, "vocabulary": len(WORDS), "max_length": MAX_LENGTH}),
        "photo": Kind(f"{here}:PatchEncoder", 24, ImagePreprocessor(32, 32), photos),
        "words": Kind(f"{here}:WordEncoder", 24, _words(), texts),
        "masked": Kind(f"{here}:MaskedEncoder", 24, _words(), texts),
        "sound": Kind("features:12", 12, FeaturesPreprocessor(12), vectors),
        "pooled": Kind("features:12", 12, FeaturesPreprocessor(12), vectors, pool=2),
    }


def _words() -> TextPreprocessor:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = Whitespace()
    return TextPreprocessor(tokenizer.to_str(), MAX_LENGTH)


def embedder_of(modality: str, kind: Kind, others: Mapping[str, int] | None = None, **head: Any) -> EagerEmbedder:
    """An encoder with a head of its own, of seeded random weights; ``others`` are more modalities of the head."""
    torch.manual_seed(3)
    encoder = FrozenEncoder(build_encoder(kind.source, kind.options), kind.preprocess, kind.dim)
    module = RegisterTokenModule({modality: kind.dim, **(others or {})}, **{"dim": DIM, "heads": 4, **head})
    return EagerEmbedder(encoder, module, modality, FeatureReduction(ReductionConfig(kind.dim, pool=kind.pool)))


def graph_of(
    modality: str, kind: Kind, opset: int = DEFAULT_OPSET, attention: bool = False, **head: Any
) -> onnx.ModelProto:
    """The exported float32 graph."""
    return traced_once(embedder_of(modality, kind, **head), kind.preprocess, kind.sample(), opset, attention)


def bundle_of(
    folder: Path,
    graphs: Mapping[str, onnx.ModelProto],
    precisions: Sequence[str] = ("fp32",),
    int8: str = "dynamic",
    calibration: Sequence[Arrays] = (),
    tokens: int = 4,
    attention: bool = False,
) -> Bundle:
    """A bundle of these float32 graphs in every precision; its golden vectors are empty."""
    entries = {}
    folder.mkdir(parents=True)
    for modality, graph in graphs.items():
        names = {precision: graph_name(modality, precision) for precision in precisions}
        for precision, name in names.items():
            graph_files(convert(graph, precision, int8, calibration), folder, name)
        settings = kinds()[modality].preprocess.to_parts()[0]
        entries[modality] = ModalityEntry(names, input_specs(graph), settings.get("max_length"), settings, {})
    write_atomically(folder / GOLDEN, b"")
    manifest = Manifest(
        num_register_tokens=tokens,
        num_overlapping_tokens=min(3, tokens),
        trained_register_tokens=tokens,
        dim=DIM,
        opset=20,
        outputs=[*OUTPUTS, *[ATTENTION] * attention],
        precisions={precision: PrecisionEntry(TOLERANCES[precision]) for precision in precisions},
        modalities=entries,
        files={path.name: hash_file(path) for path in sorted(folder.iterdir())},
        golden=GOLDEN,
        stage1_hash="0",
        head_hash="0",
        identity={},
    )
    write_manifest(folder, manifest)
    return read_bundle(folder)
