"""Small random encoders of many families, built from configuration and saved by their own libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.encoders.real_sources import real_source

_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIDE = 32
_PATCH = {"image_size": _SIDE, "patch_size": 8}
_WORDS = 120


@dataclass(frozen=True)
class Family:
    """One kind of encoder."""

    name: str
    kind: str
    """``image``, ``text`` or ``audio``."""
    save: Callable[[Path], str]
    """Saves a model of it, and what feeds it, into a folder, and returns the source that names it."""
    model_class: str | None = None
    """Class of transformers that loads it."""


def families() -> list[Family]:
    """List every family that the proof runs over."""
    return [
        *(Family(name, "image", _hf_image(*row), row[0]) for name, row in _HF_IMAGES.items()),
        *(Family(name, "image", _timm(model, **arguments)) for name, (model, arguments) in _TIMM.items()),
        *(Family(name, "text", _hf_text(name, *row), row[0]) for name, row in _HF_TEXTS.items()),
        *(Family(name, "audio", _hf_audio(*row), row[0]) for name, row in _HF_AUDIO.items()),
        Family("open_clip ViT, image", "image", _open_clip),
        Family("open_clip ViT, text", "text", _open_clip),
        *(Family(f"{name}, real weights", kind, _real(source)) for name, (kind, source) in _REAL.items()),
    ]


_REAL = {
    "all-MiniLM-L6-v2": ("text", "minilm"),
    "EfficientNet-Lite0": ("image", "efficientnet-lite0"),
    "DINOv2-small": ("image", "dinov2-small"),
}


_SQUARE = {"size": {"height": _SIDE, "width": _SIDE}}
_CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": _SIDE, "width": _SIDE}}
_HF_IMAGES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "ViT": ("ViTModel", {**_TINY, **_PATCH}, "ViTImageProcessor", _SQUARE),
    "DeiT": ("DeiTModel", {**_TINY, **_PATCH}, "DeiTImageProcessor", _CROPPED),
    "DINOv2": (
        "Dinov2Model",
        {**_TINY, "image_size": 56, "patch_size": 8},
        "BitImageProcessor",
        _CROPPED,
    ),
    "DINOv2 with registers": (
        "Dinov2WithRegistersModel",
        {**_TINY, **_PATCH, "num_register_tokens": 4},
        "BitImageProcessor",
        _CROPPED,
    ),
    "DINOv3": (
        "DINOv3ViTModel",
        {**_TINY, **_PATCH, "num_register_tokens": 4},
        "DINOv3ViTImageProcessor",
        _SQUARE,
    ),
    "SigLIP, image": ("SiglipVisionModel", {**_TINY, **_PATCH}, "SiglipImageProcessor", _SQUARE),
    "SigLIP2 NaFlex, image": (
        "Siglip2VisionModel",
        {**_TINY, "patch_size": 8, "num_patches": 16},
        "Siglip2ImageProcessor",
        {"patch_size": 8, "max_num_patches": 16},
    ),
    "CLIP, image": ("CLIPVisionModel", {**_TINY, **_PATCH}, "CLIPImageProcessor", _CROPPED),
    "ConvNeXt": (
        "ConvNextModel",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": _SIDE},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": _SIDE}, "crop_pct": 0.875},
    ),
    "Swin": (
        "SwinModel",
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": _SIDE, "patch_size": 4},
        "ViTImageProcessor",
        _SQUARE,
    ),
    "EfficientNet": (
        "EfficientNetModel",
        {
            "width_coefficient": 0.3,
            "depth_coefficient": 0.3,
            "image_size": _SIDE,
            "hidden_dim": 384,
        },
        "EfficientNetImageProcessor",
        _SQUARE,
    ),
    "ResNet": (
        "ResNetModel",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": _SIDE}, "crop_pct": 0.875},
    ),
}
_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "timm ViT": ("vit_tiny_patch16_224", {"img_size": _SIDE, "depth": 2, "embed_dim": 32, "num_heads": 2}),
    "timm DINOv2": ("vit_small_patch14_dinov2", {"img_size": 56, "depth": 2, "embed_dim": 32, "num_heads": 2}),
    "timm ConvNeXt": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "timm Swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": _SIDE, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2)},
    ),
    "timm EfficientNet": ("tf_efficientnet_lite0", {}),
    "timm ResNet": ("resnet10t", {}),
}
_HF_TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("BertModel", _TINY),
    "MiniLM": ("BertModel", {**_TINY, "num_hidden_layers": 3}),
    "DistilBERT": ("DistilBertModel", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}),
    "MPNet": ("MPNetModel", _TINY),
    "XLM-R": ("XLMRobertaModel", {**_TINY, "pad_token_id": 1, "max_position_embeddings": 66}),
    "ModernBERT": ("ModernBertModel", {**_TINY, "pad_token_id": 0, "local_attention": 8}),
    "DeBERTa": ("DebertaV2Model", {**_TINY, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "E5": ("XLMRobertaModel", {**_TINY, "pad_token_id": 1, "max_position_embeddings": 66}),
    "T5 encoder": ("T5EncoderModel", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}),
    "CLIP, text": ("CLIPTextModel", {**_TINY, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}),
    "SigLIP, text": ("SiglipTextModel", {**_TINY, "max_position_embeddings": 16, "pad_token_id": 0}),
    "Qwen3": ("Qwen3Model", {**_TINY, "num_key_value_heads": 2, "head_dim": 16}),
}
_CONVOLUTIONS = {"conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 5, 4)}
_WAVE = {**_TINY, **_CONVOLUTIONS, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
_HF_AUDIO: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "Whisper": (
        "WhisperModel",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": 100,
            "vocab_size": 60,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "WhisperFeatureExtractor",
        {"chunk_length": 2},
    ),
    "wav2vec 2.0": ("Wav2Vec2Model", _WAVE, "Wav2Vec2FeatureExtractor", {}),
    "wav2vec 2.0 large": (
        "Wav2Vec2Model",
        {**_WAVE, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
        "Wav2Vec2FeatureExtractor",
        {"return_attention_mask": True},
    ),
    "HuBERT": ("HubertModel", _WAVE, "Wav2Vec2FeatureExtractor", {}),
    "AST": (
        "ASTModel",
        {**_TINY, "max_length": 128, "patch_size": 16, "frequency_stride": 16, "time_stride": 16},
        "ASTFeatureExtractor",
        {"max_length": 128},
    ),
    "CLAP, audio": (
        "ClapAudioModel",
        {
            "hidden_size": 32,
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "enable_fusion": False,
            "window_size": 4,
            "spec_size": 128,
        },
        "ClapFeatureExtractor",
        {"truncation": "rand_trunc", "padding": "repeatpad", "max_length_s": 2},
    ),
}


def _hf_image(model: str, config: dict[str, Any], processor: str, settings: dict[str, Any]) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        _save_model(model, config, folder)
        getattr(importlib.import_module("transformers"), processor)(**settings).save_pretrained(folder)
        return f"hf:{folder}"

    return save


def _hf_text(name: str, model: str, config: dict[str, Any]) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        transformers = importlib.import_module("transformers")
        _save_model(model, {**config, "vocab_size": _WORDS}, folder)
        length = 16 if "SigLIP" in name else 64
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=_word_tokenizer(),
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            model_max_length=length,
        )
        tokenizer.save_pretrained(folder)
        return f"hf:{folder}"

    return save


def _hf_audio(model: str, config: dict[str, Any], extractor: str, settings: dict[str, Any]) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        _save_model(model, config, folder)
        getattr(importlib.import_module("transformers"), extractor)(**settings).save_pretrained(folder)
        # Its files do not say how much of a sound wav2vec 2.0 reads.
        return f"hf:{folder}{'?max-length=24000' * extractor.startswith('Wav2Vec2')}"

    return save


def _real(name: str) -> Callable[[Path], str]:
    return lambda folder: real_source(name, folder)


def _timm(model: str, **arguments: Any) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        timm = importlib.import_module("timm")
        torch.manual_seed(0)
        built = timm.create_model(model, pretrained=False, num_classes=5, **arguments)
        _vary(built)
        side = arguments.get("img_size", 64)
        built.pretrained_cfg.update(input_size=(3, side, side))
        timm.models._hub.save_for_hf(built, folder, model_args=arguments, safe_serialization=True)
        return f"timm:{folder}"

    return save


def _open_clip(folder: Path) -> str:
    open_clip = importlib.import_module("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": _SIDE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    import json

    from safetensors.torch import save_model

    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_model(model, str(folder / "open_clip_model.safetensors"))
    return f"open_clip:{folder}"


def _save_model(name: str, config: dict[str, Any], folder: Path) -> None:
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**config))
    _vary(model)
    model.save_pretrained(folder)


def _vary(model: torch.nn.Module) -> None:
    """Give a random model weights that are not all alike, and statistics of batch normalization that are used."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.add_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.mul_(1 + 0.5 * torch.rand(module.running_var.shape, generator=generator))


def _word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), "red", "green", "blue", "circle", "square"]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer
