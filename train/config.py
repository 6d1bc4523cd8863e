"""What a training run is: every option of `fluxtalk-train`, validated before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from fluxtalk.artifacts import Identity
from fluxtalk.config import StrictConfig, require

ENCODE = ("cache", "online")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig(StrictConfig):
    """The options of `fluxtalk-train`. The first eight and their defaults are the specified ones."""

    stage1_checkpoint: str
    output_dir: str
    log_name: str
    batch_size: int = 64
    """Pairs per process and step."""
    epochs: int = 100
    num_register_tokens: int = 4
    num_overlapping_tokens: int = 3
    nested_dropout_rate: float = 0.5
    complementary_reg_weight: float = 0.01
    data: str | None = None
    """Data set; None takes the one that the stage 1 checkpoint names."""
    dim: int = 256
    heads: int = 8
    depth: int = 1
    self_attention: bool = False
    block_weights: str = "shared"
    dropout: float = 0.1
    feature_dropout: float = 0.0
    token_dropout: float = 0.0
    nested_dropout_schedule: str = "linear"
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    """On matrices; vectors and the temperature never decay."""
    warmup_fraction: float = 0.1
    """Share of all steps in which the rate rises linearly; it then falls by a cosine."""
    gradient_clip: float = 1.0
    ema_decay: float = 0.0
    """Evaluate and keep an exponential moving average of the head with this decay; 0 is off."""
    encode: str = "cache"
    """`cache` encodes every item once, `online` runs the frozen encoders in every step."""
    precision: str = "fp32"
    """Of the head's arithmetic in training; bf16 is autocast."""
    eval_every: int = 5
    """Epochs between validations; the last epoch is always validated."""
    seed: int = 0
    cache_dir: str | None = None
    device: str = "auto"
    experiment_id: str = Identity.experiment_id
    implementation: str = Identity.implementation

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "eval_every"):
            require(getattr(self, name) >= 1, f"--{name} is at least 1; got {getattr(self, name)}.")
        require(
            self.complementary_reg_weight >= 0,
            f"--complementary_reg_weight is at least 0; got {self.complementary_reg_weight}.",
        )
        require(self.learning_rate > 0, f"--learning_rate is positive; got {self.learning_rate}.")
        require(self.weight_decay >= 0, f"--weight_decay is at least 0; got {self.weight_decay}.")
        require(0 <= self.warmup_fraction <= 1, f"--warmup_fraction lies in [0, 1]; got {self.warmup_fraction}.")
        require(self.gradient_clip > 0, f"--gradient_clip is positive; got {self.gradient_clip}.")
        require(0 <= self.ema_decay < 1, f"--ema_decay lies in [0, 1); got {self.ema_decay}.")
        require(self.encode in ENCODE, f"--encode is one of {', '.join(ENCODE)}; got {self.encode!r}.")
        require(self.precision in PRECISIONS, f"--precision is one of {', '.join(PRECISIONS)}; got {self.precision!r}.")
        require(
            bool(self.log_name) and "/" not in self.log_name and self.log_name not in (".", ".."),
            f"--log_name is one folder name; got {self.log_name!r}.",
        )
        require(bool(self.implementation.strip()), "--implementation must not be empty.")
        require(bool(self.experiment_id.strip()), "--experiment_id must not be empty.")
