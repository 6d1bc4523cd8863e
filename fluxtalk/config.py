"""Configuration: frozen dataclasses that validate themselves, strict to and from dictionaries."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Self

from fluxtalk.errors import UsageError
from fluxtalk.field_types import field_types, fits, shown, type_words
from fluxtalk.tokens import CONCAT, MEAN, TokenLayout

SCHEDULES = ("linear", "uniform", "pow2", "geometric")
BLOCK_WEIGHTS = ("shared", "per_modality")
OUTPUT_PROJECTIONS = ("shared", "per_register")
MEAN_PATHS = ("none", "linear", "mlp")
AGGREGATIONS = ("mean", "concat", "maxsim")
CONTRASTIVE_LOSSES = ("infonce", "sigmoid")
COMPLEMENTARY_OBJECTIVES = ("none", "reconstruction", "contrast", "difference")
LATER_FIELDS: dict[str, Any] = {
    "mean_path": "none",
    "token_dim": 0,
    "feed_forward": 4,
    "nested_dims": "",
    "summary_registers": 1,
    "mean_path_width": 4,
    "regions": "",
}
"""Fields that heads did not always have, with the value that says so."""
LARGEST_GRID = 65_536
"""Most places of a grid of features."""
_MODALITY = re.compile(r"[a-z][a-z0-9_]*\Z")
_GRID = re.compile(r"([a-z][a-z0-9_]*)=(?:(\d{1,6})\+)?(\d{1,6})x(\d{1,6})\Z")


class StrictConfig:
    """Mixin of configuration dataclasses: to a dictionary and back, refusing unknown and missing fields."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` gave.

        Raises:
            UsageError: a field is unknown, is missing, is of another type, or has an impossible value.
        """
        if not isinstance(values, Mapping):
            raise UsageError(f"{cls.__name__} is an object; got {shown(values)}.")
        known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        missing = sorted(
            name
            for name, field in known.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if unknown or missing:
            parts = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(
                missing
            )
            raise UsageError(f"{cls.__name__} does not fit this version of FluxTalk: {'; '.join(parts)}.")
        for name, hint in field_types(cls).items():
            if name in values and not fits(values[name], hint):
                raise UsageError(f"{cls.__name__}.{name} is {type_words(hint)}; got {shown(values[name])}.")
        return cls(**values)


def require(condition: bool, sentence: str) -> None:
    """Raise `UsageError` with the sentence unless the condition holds."""
    if not condition:
        raise UsageError(sentence)


def rising_integers(text: str) -> tuple[int, ...]:
    """Read a list of rising positive integers, such as ``1,2,4``; an empty one may be meant.

    Raises:
        UsageError: it is something else.
    """
    try:
        values = tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        values = (0,)
    require(
        all(before < after for before, after in itertools.pairwise((0, *values))),
        f"A list of rising integers is written 1,2,4; got {text!r}.",
    )
    return values


@dataclass(frozen=True)
class Grid:
    """Places of a modality's features: row after row, behind those that have no place, such as a class token."""

    height: int
    width: int
    before: int = 0
    """Number of features before the grid."""

    @property
    def places(self) -> int:
        """Number of features, those before the grid included."""
        return self.before + self.height * self.width

    def __str__(self) -> str:
        return f"{self.before}+" * bool(self.before) + f"{self.height}x{self.width}"


def read_grids(text: str) -> dict[str, Grid]:
    """Read the grids of modalities, such as ``image=7x7`` or ``image=1+14x14,audio=1x50``.

    Raises:
        UsageError: it is something else.
    """
    grids: dict[str, Grid] = {}
    for part in text.split(",") if text else ():
        found = _GRID.match(part.strip())
        words = found.groups(default="0") if found else ("", "0", "0", "0")
        name, grid = words[0], Grid(int(words[2]), int(words[3]), int(words[1]))
        require(
            grid.height * grid.width >= 1 and grid.places <= LARGEST_GRID and name not in grids,
            f"Regions name each modality's grid of features once, as image=7x7 or image=1+14x14, or are found by "
            f"--regions auto; got {text!r}.",
        )
        grids[name] = grid
    return grids


def require_modality_name(name: str) -> None:
    """Refuse a modality's name that is not an identifier that a file can have."""
    require(
        bool(_MODALITY.match(name)),
        f"A modality's name is lower-case letters, digits and underscores, starting with a letter; got {name!r}.",
    )


@dataclass(frozen=True)
class HeadConfig(StrictConfig):
    """Configuration of the register head."""

    dims: dict[str, int]
    """Modality to feature dimension."""
    dim: int = 256
    """Width of register tokens, and of embeddings unless `token_dim` is another."""
    num_register_tokens: int = 4
    num_overlapping_tokens: int = 3
    nested_dropout_rate: float = 0.5
    """Probability that the last token is dropped in training."""
    nested_dropout_schedule: str = "linear"
    depth: int = 1
    heads: int = 8
    self_attention: bool = False
    """Causal self-attention among the registers."""
    block_weights: str = "shared"
    """Owner of the blocks' queries, outputs and feed-forward: `shared`, or `per_modality`."""
    output_projection: str = "shared"
    """Owner of the last linear map: `shared`, or `per_register`, which makes tokens repeat each other less."""
    dropout: float = 0.0
    """Dropout inside the head, in training."""
    feature_dropout: float = 0.0
    """Dropout on single numbers of the features, in training."""
    token_dropout: float = 0.0
    """Probability that a whole feature vector is hidden, in training."""
    aggregation: str = "mean"
    """Representation compared between modalities: `mean` of the overlapping tokens, their `concat`, or `maxsim`."""
    mean_path: str = "none"
    """Map of the mean of a modality's features that every token begins with: `none`, `linear`, or an `mlp`."""
    token_dim: int = 0
    """Numbers in a token, if other than the head's width; 0 is the width."""
    feed_forward: int = 4
    """Width of the hidden layer of a block's feed-forward, in widths of the head."""
    nested_dims: str = ""
    """Smaller sizes, such as 8,16,32: the first numbers of a token alone are trained too."""
    summary_registers: int = 1
    """Registers, from the first, whose reads the first token adds up: 1 is its own, 0 all overlapping tokens'."""
    mean_path_width: int = 4
    """Width of the hidden layer of the mean path's `mlp`, in widths of the head."""
    regions: str = ""
    """Grids of features, such as `image=7x7`: each register has a mean of its own, and learns its place on them."""

    @property
    def grids(self) -> dict[str, Grid]:
        """Grid of each modality that `regions` names."""
        return read_grids(self.regions)

    @property
    def summed_registers(self) -> int:
        """Number of registers, from the first, that the first token reads."""
        return self.summary_registers or self.num_overlapping_tokens

    @property
    def num_registers(self) -> int:
        """Number of registers: a head that was cut to its first tokens keeps those that the first token reads."""
        return max(self.num_register_tokens, self.summed_registers)

    @property
    def layout(self) -> TokenLayout:
        """The register tokens that the head computes."""
        return TokenLayout(
            self.num_register_tokens,
            self.num_overlapping_tokens,
            self.token_dim or self.dim,
            summary=CONCAT if self.aggregation == CONCAT else MEAN,
            nested_dims=rising_integers(self.nested_dims),
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types; what a head of before does not have is left out, so that its hashes stay."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if LATER_FIELDS.get(name, MISSING) != value}

    def __post_init__(self) -> None:
        require(bool(self.dims), "A head needs at least one modality.")
        for name, size in self.dims.items():
            require_modality_name(name)
            require(size >= 1, f"The feature dimension of {name} is at least 1; got {size}.")
        require(self.num_register_tokens >= 1, f"num_register_tokens is at least 1; got {self.num_register_tokens}.")
        require(
            1 <= self.num_overlapping_tokens <= self.num_register_tokens,
            f"num_overlapping_tokens is in 1..{self.num_register_tokens}, the number of register tokens; "
            f"got {self.num_overlapping_tokens}.",
        )
        require(self.depth >= 1, f"The head's depth is at least 1; got {self.depth}.")
        require(
            self.heads >= 1 and self.dim % self.heads == 0 and self.dim > 0,
            f"The head's dim must be a positive multiple of its heads; got dim {self.dim} and {self.heads} heads.",
        )
        require(0 <= self.nested_dropout_rate < 1, f"nested_dropout_rate is in [0, 1); got {self.nested_dropout_rate}.")
        require(
            self.nested_dropout_schedule in SCHEDULES,
            f"nested_dropout_schedule is one of {', '.join(SCHEDULES)}; got {self.nested_dropout_schedule!r}.",
        )
        require(
            self.block_weights in BLOCK_WEIGHTS,
            f"block_weights is one of {', '.join(BLOCK_WEIGHTS)}; got {self.block_weights!r}.",
        )
        require(
            self.output_projection in OUTPUT_PROJECTIONS,
            f"output_projection is one of {', '.join(OUTPUT_PROJECTIONS)}; got {self.output_projection!r}.",
        )
        require(
            self.aggregation in AGGREGATIONS,
            f"aggregation is one of {', '.join(AGGREGATIONS)}; got {self.aggregation!r}.",
        )
        require(self.mean_path in MEAN_PATHS, f"mean_path is one of {', '.join(MEAN_PATHS)}; got {self.mean_path!r}.")
        require(self.token_dim >= 0, f"token_dim is at least 1, or 0 for the head's width; got {self.token_dim}.")
        require(self.feed_forward >= 1, f"feed_forward is at least 1; got {self.feed_forward}.")
        require(self.mean_path_width >= 1, f"mean_path_width is at least 1; got {self.mean_path_width}.")
        require(
            self.summary_registers >= 0,
            f"summary_registers is at least 1, or 0 for all overlapping tokens; got {self.summary_registers}.",
        )
        self._check_nested_dims()
        self._check_regions()
        for name in ("dropout", "feature_dropout", "token_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} is in [0, 1); got {value}.")

    def _check_regions(self) -> None:
        unknown = sorted(set(self.grids) - set(self.dims))
        require(not unknown, f"regions names modalities of {', '.join(self.dims)}; got {', '.join(unknown)}.")
        require(
            not self.regions or self.mean_path != "none",
            f"regions are means that the mean path reads; set mean_path to linear or mlp, got {self.mean_path!r}.",
        )

    def _check_nested_dims(self) -> None:
        width = self.token_dim or self.dim
        listed = f"nested_dims is rising integers below {width}, the numbers in a token, such as 8,16,32"
        try:
            sizes = rising_integers(self.nested_dims)
        except UsageError:
            sizes = (width,)
        require(not sizes or sizes[-1] < width, f"{listed}; got {self.nested_dims!r}.")
