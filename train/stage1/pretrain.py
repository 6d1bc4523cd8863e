"""Stage 1 for small encoders: unimodal pretraining by masking. No pair is seen, and no label.

Image: masked reconstruction of pixels (He et al. 2022, "Masked Autoencoders Are Scalable Vision
Learners"; masked patches stay in the sequence as in Xie et al. 2022, "SimMIM").
Text: masked language modeling (Devlin et al. 2019, "BERT").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from fluxtalk.console import progress
from fluxtalk.datasets import Split
from fluxtalk.errors import TrainingError
from fluxtalk.model.checkpoints.stage1 import Stage1Modality
from fluxtalk.model.encoders import EncoderSpec, SmallImageEncoder, SmallTextEncoder
from fluxtalk.model.head.attention import EncoderBlock
from fluxtalk.preprocess import ImagePreprocessor, TextPreprocessor

MASK_TOKEN = "[MASK]"
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", MASK_TOKEN)


@dataclass(frozen=True)
class PretrainConfig:
    """Hyper-parameters of one encoder's pretraining."""

    steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_fraction: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class PretrainFigures:
    """Result of a pretraining, stored in the checkpoint."""

    steps: int
    final_loss: float
    """Mean over the last tenth of the steps."""
    seconds: float


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> str:
    """Train a byte-pair tokenizer on words, single digits and hyphens; return its ``tokenizer.json``."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex("-"), "isolated"),
            pre_tokenizers.Metaspace(),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(_SPECIAL_TOKENS), min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    return str(tokenizer.to_str())


def pretrain_image(
    encoder: SmallImageEncoder, images: NDArray[np.uint8], mean: float, std: float, config: PretrainConfig
) -> PretrainFigures:
    """Train ``encoder`` in place to reconstruct masked patches.

    Args:
        images: (items, size, size) uint8, one channel.
        mean: subtracted from pixels scaled to 0..1, as in serving.
        std: divides after that.
    """
    generator = torch.Generator().manual_seed(config.seed)
    task = _MaskedPixels(encoder)
    pixels = torch.from_numpy(np.ascontiguousarray(images))

    def loss(_step: int) -> Tensor:
        rows = torch.randint(len(pixels), (config.batch_size,), generator=generator)
        target = _augment(pixels[rows][:, None].float() / 255, generator)
        patches = encoder.grid**2
        # The share of hidden patches varies, so that the encoder also knows images that are almost whole.
        share = 0.25 + 0.5 * torch.rand(config.batch_size, 1, generator=generator)
        hidden = torch.rand(config.batch_size, patches, generator=generator) < share
        loss_: Tensor = task(target, hidden, mean, std)
        return loss_

    return _optimize(task, loss, config, "image: masked reconstruction")


def pretrain_text(
    encoder: SmallTextEncoder, token_ids: Sequence[NDArray[np.int64]], mask_id: int, config: PretrainConfig
) -> PretrainFigures:
    """Train ``encoder`` in place to name masked tokens.

    Args:
        token_ids: one int64 (length,) per text.
        mask_id: the id of the mask token.
    """
    generator = torch.Generator().manual_seed(config.seed)
    longest = max(len(ids) for ids in token_ids)
    padded = torch.zeros(len(token_ids), longest, dtype=torch.long)
    present = torch.zeros(len(token_ids), longest, dtype=torch.bool)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = torch.from_numpy(ids)
        present[row, : len(ids)] = True
    task = _MaskedTokens(encoder)

    def loss(_step: int) -> Tensor:
        rows = torch.randint(len(padded), (config.batch_size,), generator=generator)
        ids, mask = padded[rows], present[rows]
        width = int(mask.sum(1).max())
        ids, mask = ids[:, :width], mask[:, :width]
        chosen = (torch.rand(ids.shape, generator=generator) < 0.25) & mask
        # One token per text at least: a batch without a masked token has no loss.
        first = (torch.rand(ids.shape, generator=generator) * mask).argmax(1, keepdim=True)
        chosen = chosen.scatter(1, first, True)
        kind = torch.rand(ids.shape, generator=generator)
        noise = torch.randint(len(_SPECIAL_TOKENS), encoder.token.num_embeddings, ids.shape, generator=generator)
        shown = torch.where(chosen & (kind < 0.8), mask_id, torch.where(chosen & (kind > 0.9), noise, ids))
        loss_: Tensor = task(shown, mask, ids, chosen)
        return loss_

    return _optimize(task, loss, config, "text: masked language modeling")


class _MaskedPixels(nn.Module):
    """The encoder with a one-block decoder that is thrown away."""

    def __init__(self, encoder: SmallImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden_token = nn.Parameter(torch.zeros(encoder.dim))
        self.block = EncoderBlock(encoder.dim, encoder.heads)
        self.head = nn.Sequential(nn.LayerNorm(encoder.dim), nn.Linear(encoder.dim, encoder.patch**2))

    def forward(self, target: Tensor, hidden: Tensor, mean: float, std: float) -> Tensor:
        encoder = self.encoder
        patch, grid = encoder.patch, encoder.grid
        cover = hidden.view(-1, 1, grid, grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        shown = (target.masked_fill(cover, 0.0) - mean) / std
        x = encoder.stem(shown).flatten(2).transpose(1, 2) + encoder.position
        x = torch.where(hidden[..., None], self.hidden_token + encoder.position, x)
        for block in encoder.blocks:
            x = block(x)
        logits = self.head(self.block(encoder.norm(x)))
        wanted = F.unfold(target, patch, stride=patch).transpose(1, 2)
        return F.binary_cross_entropy_with_logits(logits[hidden], wanted[hidden])


class _MaskedTokens(nn.Module):
    """The encoder with an output layer tied to its token embedding."""

    def __init__(self, encoder: SmallTextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.transform = nn.Sequential(nn.Linear(encoder.dim, encoder.dim), nn.GELU(), nn.LayerNorm(encoder.dim))
        self.bias = nn.Parameter(torch.zeros(encoder.token.num_embeddings))

    def forward(self, shown: Tensor, mask: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
        features = self.transform(self.encoder(shown, mask)[chosen])
        return F.cross_entropy(features @ self.encoder.token.weight.T + self.bias, ids[chosen])


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small random affine maps of (batch, 1, size, size): shift to 2 pixels, scale to 12 %, turn and shear to 6 °."""
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear, scale = uniform(math.radians(6)), uniform(math.radians(6)), 1 + uniform(0.12)
    shift = 2 * 2 / images.shape[-1]
    theta = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * (angle + shear).sin(), uniform(shift)], 1),
            torch.stack([scale * angle.sin(), scale * (angle + shear).cos(), uniform(shift)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _optimize(task: nn.Module, loss_of: Callable[[int], Tensor], config: PretrainConfig, what: str) -> PretrainFigures:
    """AdamW with warm-up and cosine decay; matrices decay, vectors do not."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
    )
    warmup = max(1, round(config.steps * config.warmup_fraction))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    task.train()
    started = time.monotonic()
    tail: list[float] = []
    bar = progress(range(config.steps), what, unit="step")
    for step in bar:
        loss = loss_of(step)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"The loss of {what} became {value} at step {step}; lower the learning rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= config.steps * 9 // 10:
            tail.append(value)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)
    task.eval()
    return PretrainFigures(config.steps, round(sum(tail) / len(tail), 5), round(time.monotonic() - started, 1))


IMAGE_MEAN, IMAGE_STD = 0.15, 0.30
"""Mean and standard deviation of the glyphs' pixels, scaled to 0..1."""
_VOCABULARY = 1500
_MAX_LENGTH = 32


def pretrain_modalities(
    split: Split, image_steps: int, text_steps: int, seed: int
) -> tuple[dict[str, Stage1Modality], dict[str, PretrainFigures]]:
    """Pretrain an image and a text encoder on the items of a training split, each without the other.

    Weights are kept in half precision, which halves the checkpoint; serving computes in float32 with them.

    Args:
        split: modalities ``image`` (one size, one channel) and ``text``; pairs are not looked at.

    Returns:
        The modalities of a stage 1 checkpoint, and the figures of both trainings.
    """
    torch.manual_seed(seed)
    texts = list(dict.fromkeys(split.items["text"].values))
    text_preprocess = TextPreprocessor(train_tokenizer(texts, _VOCABULARY), _MAX_LENGTH)
    text_options = {
        "vocabulary": text_preprocess.vocabulary_size,
        "max_length": _MAX_LENGTH,
        "dim": 128,
        "depth": 3,
        "heads": 4,
    }
    text = SmallTextEncoder(**text_options)
    ids = [text_preprocess.prepare(value) for value in texts]
    mask_id = text_preprocess.tokenizer.token_to_id(MASK_TOKEN)
    assert mask_id is not None  # train_tokenizer puts it into the vocabulary
    text_figures = pretrain_text(text, ids, mask_id, PretrainConfig(text_steps, seed=seed))

    images = np.stack(split.items["image"].values)
    size = images.shape[1]
    image_preprocess = ImagePreprocessor(size, size, channels=1, mean=(IMAGE_MEAN,), std=(IMAGE_STD,))
    image_options = {"size": size, "channels": 1, "dim": 144, "depth": 4, "heads": 4}
    image = SmallImageEncoder(**image_options)
    image_figures = pretrain_image(image, images, IMAGE_MEAN, IMAGE_STD, PretrainConfig(image_steps, seed=seed))

    modalities = {
        "image": Stage1Modality(EncoderSpec("small-image", image_options, image.dim), _halved(image), image_preprocess),
        "text": Stage1Modality(EncoderSpec("small-text", text_options, text.dim), _halved(text), text_preprocess),
    }
    return modalities, {"image": image_figures, "text": text_figures}


def _halved(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in module.state_dict().items()
    }
