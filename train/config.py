"""Every option of `fluxtalk-train`, validated before anything is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self, get_type_hints

from fluxtalk.artifacts.files import Identity
from fluxtalk.config import (
    AGGREGATIONS,
    BLOCK_WEIGHTS,
    COMPLEMENTARY_OBJECTIVES,
    CONTRASTIVE_LOSSES,
    MEAN_PATHS,
    OUTPUT_PROJECTIONS,
    SCHEDULES,
    StrictConfig,
    read_grids,
    require,
    rising_integers,
)
from fluxtalk.datasets.bad_items import CHOICES as ON_BAD_ITEM
from fluxtalk.datasets.bad_items import FAIL, LIMIT, BadItemPolicy
from fluxtalk.errors import UsageError
from fluxtalk.train.option_types import plain, spelled

ENCODE = ("cache", "online")
TRAINING_PRECISIONS = ("fp32", "bf16", "fp16")
NESTED_DRAWS = ("independent", "batch", "all")
FEATURE_DTYPES = ("fp16", "int8")
SWEEPS = ("none", "small")
TRACKER_NAMES = ("wandb", "mlflow")
DEVICES = ("auto", "cpu", "cuda")
AUTO = "auto"
_RECOMMENDED: dict[str, Any] = {
    "num_overlapping_tokens": 4,
    "mean_path": "mlp",
    "feed_forward": 1,
    "heads": 2,
    "aggregation": "concat",
    "output_projection": "per_register",
    "summary_registers": 0,
    "nested_draw": "all",
    "k_values": "1,2,4",
    "dropout": 0.1,
    "feature_dropout": 0.1,
    "token_dropout": 0.3,
    "patience": 5,
}
RECIPES: dict[str, dict[str, Any]] = {
    "specified": {},
    "recommended": _RECOMMENDED,
    "difference": {
        **_RECOMMENDED,
        "num_register_tokens": 5,
        "items_per_id": 4,
        "complementary_objective": "difference",
        "complementary_objective_weight": 10.0,
    },
    "regions": {
        **_RECOMMENDED,
        "num_register_tokens": 8,
        "num_overlapping_tokens": 8,
        "token_dim": 64,
        "k_values": "1,2,4,8",
        "aggregation": "maxsim",
        "maxsim_sharpness": 10.0,
        "output_projection": "shared",
        "regions": AUTO,
    },
    "private": {
        "complementary_objective": "contrast",
        "complementary_correlation_weight": 0.3,
        "dropout": 0.1,
        "feature_dropout": 0.1,
        "token_dropout": 0.1,
    },
}
"""Named sets of options: `specified` is the defaults; `recommended` begins at the mean-pool MLP, compares tokens side
by side, which is what its bundle gives of an item, and trains no complementary ones; `difference` is the same with a
complementary token that says how an item differs from others of its id, for data whose ids have several items;
`regions` compares eight narrow tokens one by one, of which the first sums up an item and the others read regions of it,
for queries that name a part of what is in a picture (docs/quality.md has all three); `private` gives the specified
head's complementary token an objective that needs one item of an id, with dropouts that some thousand pairs need."""

CHOICES: dict[str, tuple[str, ...]] = {
    "encode": ENCODE,
    "precision": TRAINING_PRECISIONS,
    "contrastive": CONTRASTIVE_LOSSES,
    "complementary_objective": COMPLEMENTARY_OBJECTIVES,
    "nested_draw": NESTED_DRAWS,
    "feature_dtype": FEATURE_DTYPES,
    "recipe": tuple(RECIPES),
    "nested_dropout_schedule": SCHEDULES,
    "block_weights": BLOCK_WEIGHTS,
    "output_projection": OUTPUT_PROJECTIONS,
    "mean_path": MEAN_PATHS,
    "aggregation": AGGREGATIONS,
    "device": DEVICES,
    "on_bad_item": ON_BAD_ITEM,
    "sweep": SWEEPS,
}
"""Option to the words that it takes."""
LARGEST_RATE = 100.0
"""Largest learning rate: AdamW's steps are about as long as its rate, on parameters of about 1."""
LARGEST = 1e30
"""Largest number of any option: its product with the rate is still finite in float32."""
SEEDS = 2**63
"""Bound of the seeds that PyTorch's generators take."""


@dataclass(frozen=True)
class TrainConfig(StrictConfig):
    """The options of `fluxtalk-train`. The first eight and their defaults are the specified ones."""

    stage1_checkpoint: str
    output_dir: str
    log_name: str
    batch_size: int = 64
    """Pairs per process and forward pass."""
    accum_steps: int = 1
    """Forward passes per process and step; negatives span all of them (gradient caching)."""
    items_per_id: int = 1
    """Rows of each id in a batch, with different items of it if there are as many."""
    hard_negatives: int = 0
    """Nearest other ids, by the head itself once an epoch, that share an anchor's batch; 0 is off."""
    hard_negative_margin: float = 0.0
    """Similarity by which a hard negative is below the anchor's positive at least; nearer ids may be positives."""
    hard_negative_relative_margin: float = 0.05
    """The same as a share of the positive's similarity; the larger margin counts."""
    hard_negative_max_score: float = 1.0
    """Largest similarity of a hard negative."""
    epochs: int = 100
    num_register_tokens: int = 4
    num_overlapping_tokens: int = 3
    nested_dropout_rate: float = 0.5
    complementary_reg_weight: float = 0.01
    complementary_objective: str = "none"
    """Objective of the complementary tokens besides L2 + diversity."""
    complementary_objective_weight: float = 1.0
    complementary_correlation_weight: float = 1.0
    """Weight of the cross-correlation penalty between complementary and shared tokens; more costs recall."""
    view_dropout: float = 0.8
    """Probability that a feature vector is hidden in the second view of `complementary_objective` contrast."""
    contrastive: str = "infonce"
    nested_draw: str = "independent"
    """Draw of k: `independent` per sample and modality, once per `batch`, or the loss at several (`all`)."""
    k_values: str = ""
    """Numbers of tokens at which `nested_draw` all takes the loss, such as 1,2,4, each with a temperature of its own;
    empty draws them in every step."""
    maxsim_sharpness: float = 0.0
    """Sharpness of the log-mean-exp that stands for the maximum of `aggregation` maxsim in training; 0 is off."""
    recipe: str = "specified"
    """Named set of options that this one began with."""
    data: str | None = None
    """Data set; None takes the one that the stage 1 checkpoint names."""
    on_bad_item: str = FAIL
    """What is done, when everything else is encoded, about items that cannot be used: `fail` or `skip`."""
    bad_items_limit: float = LIMIT
    """Largest share of a modality's items that `skip` leaves out."""
    dim: int = 256
    heads: int = 8
    depth: int = 1
    self_attention: bool = False
    block_weights: str = "shared"
    output_projection: str = "shared"
    mean_path: str = "none"
    """Map of the features' mean that every token begins with; `mlp` has the baseline's hidden layer."""
    mean_path_width: int = 4
    """Width of that hidden layer, in widths of the head."""
    regions: str = ""
    """Grids of features on which each register learns a place, such as `image=7x7`; `auto` finds them."""
    token_dim: int = 0
    """Numbers in a token; 0 is `dim`."""
    feed_forward: int = 4
    """Width of a block's feed-forward, in widths of the head."""
    summary_registers: int = 1
    """Registers, from the first, whose reads the first token adds up: 1 is its own, 0 all overlapping tokens'."""
    nested_dims: str = ""
    """Smaller sizes of a token, such as 8,16,32, at which the loss is taken too; empty is none."""
    dropout: float = 0.1
    feature_dropout: float = 0.0
    token_dropout: float = 0.0
    nested_dropout_schedule: str = "linear"
    aggregation: str = "mean"
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    """Weight decay of matrices; vectors and the temperature never decay."""
    warmup_fraction: float = 0.1
    """Share of all steps in which the rate rises linearly; it then falls by a cosine."""
    gradient_clip: float = 1.0
    ema_decay: float = 0.0
    """Evaluate and keep an exponential moving average of the head with this decay; 0 is off."""
    encode: str = "cache"
    """`cache` encodes every item once, `online` runs the frozen encoders in every step."""
    feature_dtype: str = "fp16"
    """Number format of cached features."""
    feature_pca: int = 0
    """Principal components that features are reduced to; 0 is off."""
    feature_pool: int = 1
    """Consecutive features that are averaged into one."""
    precision: str = "fp32"
    """Arithmetic of the head in training; bf16 and fp16 are autocast."""
    compile: bool = False
    """Compile the head with `torch.compile`."""
    checkpoint_every: int = 0
    """Steps between checkpoints, besides those after each validation; 0 is off."""
    init_from: str | None = None
    """Run whose best head is the initial one."""
    freeze_registers: bool = False
    """Train only parameters that modalities missing from `init_from` use alone."""
    eval_every: int = 5
    """Epochs between validations; the last epoch is always validated."""
    patience: int = 0
    """Validations in a row without a better one that end a run; 0 never ends it early."""
    sweep: str = "none"
    """Search for learning rate, epochs, dropouts and weight decay before the run."""
    sweep_minutes: float = 30.0
    """Minutes after which a sweep begins no further trial."""
    seed: int = 0
    cache_dir: str | None = None
    device: str = "auto"
    track: str = ""
    """Names of `TRACKER_NAMES` with commas between them: places that the run's numbers go to, too."""
    experiment_id: str = Identity.experiment_id
    implementation: str = Identity.implementation

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, plain(name, getattr(self, name), hint))
        self._check_numbers()
        self._check_words()
        BadItemPolicy(self.on_bad_item, self.bad_items_limit)

    def _check_numbers(self) -> None:
        for name in ("batch_size", "accum_steps", "items_per_id", "epochs", "eval_every", "feature_pool"):
            require(getattr(self, name) >= 1, f"{spelled(name)} is at least 1; got {getattr(self, name)}.")
        for name in ("feed_forward", "mean_path_width"):
            require(getattr(self, name) >= 1, f"{spelled(name)} is at least 1; got {getattr(self, name)}.")
        read_grids("" if self.regions == AUTO else self.regions)
        require(
            self.mean_path != "none" or not self.regions,
            f"--regions are means that the mean path reads; set --mean-path to linear or mlp, got {self.mean_path}.",
        )
        for name in (
            "complementary_reg_weight",
            "complementary_objective_weight",
            "complementary_correlation_weight",
            "weight_decay",
            "hard_negatives",
            "hard_negative_margin",
            "hard_negative_relative_margin",
            "checkpoint_every",
            "feature_pca",
            "token_dim",
            "summary_registers",
            "patience",
            "maxsim_sharpness",
        ):
            require(getattr(self, name) >= 0, f"{spelled(name)} is at least 0; got {getattr(self, name)}.")
        require(
            0 < self.learning_rate <= LARGEST_RATE,
            f"--learning-rate is above 0 and at most {LARGEST_RATE:g}; got {self.learning_rate}.",
        )
        require(self.sweep_minutes > 0, f"--sweep-minutes is positive; got {self.sweep_minutes}.")
        require(0 <= self.warmup_fraction <= 1, f"--warmup-fraction is in [0, 1]; got {self.warmup_fraction}.")
        require(self.gradient_clip > 0, f"--gradient-clip is positive; got {self.gradient_clip}.")
        require(0 <= self.ema_decay < 1, f"--ema-decay is in [0, 1); got {self.ema_decay}.")
        require(0 <= self.view_dropout < 1, f"--view-dropout is in [0, 1); got {self.view_dropout}.")
        require(-SEEDS <= self.seed < SEEDS, f"--seed has 64 bits, from -2^63 to 2^63 - 1; got {self.seed}.")
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if hint is float:
                require(abs(value) <= LARGEST, f"{spelled(name)} is at most {LARGEST:g}, for float32; got {value}.")

    def _check_words(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            require(value in choices, f"{spelled(name)} is one of {', '.join(choices)}; got {value!r}.")
        self._check_k_values()
        unknown = [name for name in self.trackers if name not in TRACKER_NAMES]
        require(not unknown, f"--track is wandb, mlflow or wandb,mlflow; got {self.track!r}.")
        require(
            not self.freeze_registers or self.init_from is not None,
            "--freeze-registers keeps what another run trained; name it with --init-from.",
        )
        require(
            self.complementary_objective != "contrast" or self.token_dropout + self.view_dropout > 0,
            "--complementary-objective contrast compares two token-dropout views; "
            "set --view-dropout or --token-dropout above 0.",
        )
        require(
            self.complementary_objective != "difference" or self.items_per_id > 1,
            "--complementary-objective difference compares the items of an id in a batch; "
            f"set --items-per-id to 2 or more, got {self.items_per_id}.",
        )
        require(
            bool(self.log_name) and "/" not in self.log_name and self.log_name not in (".", ".."),
            f"--log-name is one folder name; got {self.log_name!r}.",
        )
        require(bool(self.implementation.strip()), "--implementation must not be empty.")
        require(bool(self.experiment_id.strip()), "--experiment-id must not be empty.")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the places outside the run's folder that its numbers go to, too."""
        return tuple(dict.fromkeys(part.strip() for part in self.track.split(",") if part.strip()))

    def _check_k_values(self) -> None:
        listed = f"--k-values is rising integers from 1 to {self.num_register_tokens}, such as 1,2,4"
        try:
            values = self.k_list
        except UsageError:
            values = (self.num_register_tokens + 1,)
        require(not values or values[-1] <= self.num_register_tokens, f"{listed}; got {self.k_values!r}.")
        require(
            not values or self.nested_draw == "all",
            "--k-values names the k of --nested-draw all; give that too, or leave the values out.",
        )

    @property
    def bad_items(self) -> BadItemPolicy:
        """Policy about items that cannot be used."""
        return BadItemPolicy(self.on_bad_item, self.bad_items_limit)

    @property
    def k_list(self) -> tuple[int, ...]:
        """Numbers of tokens at which the loss is taken in every step; none if they are drawn."""
        return rising_integers(self.k_values)

    @classmethod
    def required(cls) -> tuple[str, ...]:
        """Names of the options without a default."""
        return tuple(name for name, field in cls.__dataclass_fields__.items() if field.default is dataclasses.MISSING)

    @classmethod
    def with_recipe(cls, recipe: str, **options: Any) -> Self:
        """Build the options of a recipe, overridden by those given here.

        Raises:
            UsageError: the recipe is unknown, or an option has an impossible value.
        """
        require(recipe in RECIPES, f"--recipe is one of {', '.join(RECIPES)}; got {recipe!r}.")
        return cls(**{**RECIPES[recipe], **options, "recipe": recipe})
