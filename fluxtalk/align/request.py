"""`AlignRequest`: what the user asks of `fluxtalk align`, validated before anything is read."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fluxtalk.config import require, require_modality_name
from fluxtalk.datasets.bad_items import BadItemPolicy
from fluxtalk.export.options import ExportOptions
from fluxtalk.train.config import DEVICES, RECIPES, SEEDS
from fluxtalk.train.features.options import CacheOptions


@dataclass(frozen=True)
class AlignRequest:
    """Data, encoders and options of one output folder.

    Raises:
        UsageError: encoders are missing, named twice over, or an option has an impossible value.
    """

    data: str
    """Data set, as ``--data`` takes it."""
    output: Path
    encoders: Mapping[str, str] = field(default_factory=dict)
    """Modality to the source of its encoder; empty if ``stage1_checkpoint`` names a checkpoint."""
    stage1_checkpoint: Path | None = None
    prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Text modality to its prompts, name to what is put before a text; they win over the model's own."""
    default_prompts: Mapping[str, str] = field(default_factory=dict)
    """Text modality to the name of the prompt that is used where none is named."""
    recipe: str = "recommended"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    """Pairs of a step; None chooses by the data's size."""
    precisions: tuple[str, ...] = ("fp32",)
    """Precisions of the bundle."""
    features: CacheOptions = field(default_factory=CacheOptions)
    bad_items: BadItemPolicy = field(default_factory=BadItemPolicy)
    seed: int = 0
    device: str = "auto"
    cache_dir: str | None = None
    allow_code: bool = False

    def __post_init__(self) -> None:
        require(
            bool(self.encoders) != (self.stage1_checkpoint is not None),
            "The encoders are named by --encoder MODALITY=SOURCE, once for each modality, or by --stage1-checkpoint; "
            f"got {'both' if self.encoders else 'neither'}.",
        )
        for modality in self.encoders:
            require_modality_name(modality)
        require(
            len(self.encoders) != 1,
            f"Two modalities or more can be aligned; got --encoder for {', '.join(self.encoders)} alone.",
        )
        strays = sorted({*self.prompts, *self.default_prompts} - set(self.encoders))
        require(
            not strays,
            "--prompt and --default-prompt belong to the text of an --encoder, and a checkpoint has its own; "
            f"got {', '.join(strays)}.",
        )
        require(self.epochs is None or self.steps is None, "Give --epochs or --steps; got both.")
        for option in ("epochs", "steps", "batch_size"):
            value = getattr(self, option)
            least = 2 if option == "batch_size" else 1
            name = option.replace("_", "-")
            require(value is None or value >= least, f"--{name} is at least {least}; got {value}.")
        ExportOptions(self.precisions)
        require(self.recipe in RECIPES, f"--recipe is one of {', '.join(RECIPES)}; got {self.recipe!r}.")
        require(self.device in DEVICES, f"--device is one of {', '.join(DEVICES)}; got {self.device!r}.")
        require(-SEEDS <= self.seed < SEEDS, f"--seed has 64 bits, from -2^63 to 2^63 - 1; got {self.seed}.")

    def command(self) -> str:
        """Spell the command line that asks for this."""
        parts = ["fluxtalk", "align", self.data]
        for modality, source in self.encoders.items():
            parts += ["--encoder", f"{modality}={source}"]
        for modality, prompts in self.prompts.items():
            parts += [part for name, text in prompts.items() for part in ("--prompt", f"{modality}.{name}={text}")]
        for modality, name in self.default_prompts.items():
            parts += ["--default-prompt", f"{modality}={name}"]
        defaults = type(self).__dataclass_fields__
        for name in ("stage1_checkpoint", "recipe", "epochs", "steps", "batch_size", "seed", "device", "cache_dir"):
            value = getattr(self, name)
            if value != defaults[name].default:
                parts += [f"--{name.replace('_', '-')}", str(value)]
        if self.precisions != defaults["precisions"].default:
            parts += [part for name in self.precisions for part in ("--precision", name)]
        for name in ("dtype", "pca", "pool"):
            value = getattr(self.features, name)
            if value != getattr(CacheOptions(), name):
                parts += [f"--feature-{name}", str(value)]
        if self.bad_items.action != BadItemPolicy().action:
            parts += ["--on-bad-item", self.bad_items.action]
        if self.bad_items.limit != BadItemPolicy().limit:
            parts += ["--bad-items-limit", str(self.bad_items.limit)]
        parts += ["--allow-code"] * self.allow_code
        return shlex.join([*parts, "-o", str(self.output)])
