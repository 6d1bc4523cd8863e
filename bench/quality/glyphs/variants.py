"""Variants trained on glyphs: the register head, one option at a time changed, and the heads it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.quality.heads import AttentionPoolHead, MatryoshkaHead, QueryFormerHead
from fluxtalk.config import COMPLEMENTARY_OBJECTIVES, HeadConfig
from fluxtalk.errors import UsageError
from fluxtalk.model.head.baselines import MeanPoolHead
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.train.config import NESTED_DRAWS, TrainConfig

MAIN = "recommended"
"""The recipe that is put to the proof, and whose options every other variant has unless it says otherwise."""

BuildHead = Callable[[HeadConfig, int], TokenHead]

_ABLATIONS: dict[str, tuple[Any, ...]] = {
    # All but `difference`, which needs several items of each id: bench/quality/style_probe.py measures it.
    "complementary_objective": tuple(name for name in COMPLEMENTARY_OBJECTIVES if name != "difference"),
    "items_per_id": (1, 2),
    "nested_draw": NESTED_DRAWS,
    "aggregation": ("mean", "concat"),
}
_PLAIN = {"complementary_objective": "none", "aggregation": "mean", "nested_dropout_rate": 0.0}
"""A head without complementary and without nested tokens."""
_ONE = {"num_register_tokens": 1, "num_overlapping_tokens": 1, "nested_draw": "independent", **_PLAIN}


@dataclass(frozen=True)
class Variant:
    """One thing to train."""

    name: str
    label: str
    """Label in tables and pictures."""
    kind: str
    """``main``, ``ablation``, ``baseline``, or ``separate``: a model for one k alone."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `TrainConfig` that replace the recipe's."""
    recipe: str = MAIN
    build: BuildHead = RegisterTokenModule.from_config

    def config(self, **common: Any) -> TrainConfig:
        """The training options; the variant's own win over the common ones."""
        return TrainConfig.with_recipe(self.recipe, **{**common, **self.options})


def variants() -> dict[str, Variant]:
    """All of them by name, the main one first."""
    main = TrainConfig.with_recipe(MAIN, stage1_checkpoint="", output_dir="", log_name="main")
    found = [
        Variant(MAIN, "register tokens", "main"),
        Variant("specified", "register tokens, specified options", "ablation", recipe="specified"),
        *_ablations(main),
        *_baselines(main),
        *(_separate(main, k) for k in range(1, main.num_overlapping_tokens + 1)),
    ]
    return {variant.name: variant for variant in found}


def variant_named(name: str) -> Variant:
    """The variant of that name.

    Raises:
        UsageError: there is none.
    """
    known = variants()
    if name not in known:
        raise UsageError(f"A variant is one of {', '.join(known)}; got {name!r}.")
    return known[name]


def _ablations(main: TrainConfig) -> list[Variant]:
    """The recipe with one option changed to each other value."""
    return [
        Variant(f"{option}={value}", f"{option} {value}", "ablation", {option: value})
        for option, values in _ABLATIONS.items()
        for value in values
        if value != getattr(main, option)
    ]


def _baselines(main: TrainConfig) -> list[Variant]:
    """Other heads with the recipe's batches, dropouts and schedule. None has a complementary token."""
    count = main.num_overlapping_tokens
    several = {"num_register_tokens": count, "num_overlapping_tokens": count}
    nested = {**_PLAIN, **several, "nested_dropout_rate": main.nested_dropout_rate}
    return [
        Variant("mean_pool_linear", "mean-pool + linear", "baseline", _ONE, build=_mean_pool("linear")),
        Variant("mean_pool_mlp", "mean-pool + MLP", "baseline", _ONE, build=_mean_pool("mlp")),
        Variant("attention_pool", "attention pool", "baseline", _ONE, build=AttentionPoolHead.from_config),
        Variant(
            "query_former",
            "Q-Former-like",
            "baseline",
            {**_PLAIN, **several, "nested_draw": "independent"},
            build=QueryFormerHead.from_config,
        ),
        Variant("matryoshka", "Matryoshka dimensions", "baseline", nested, build=MatryoshkaHead.from_config),
    ]


def _separate(main: TrainConfig, k: int) -> Variant:
    """A model for ``k`` alone, with as many complementary tokens and the same objective for them as the main model."""
    complementary = main.num_register_tokens - main.num_overlapping_tokens
    options = {
        "num_register_tokens": k + complementary,
        "num_overlapping_tokens": k,
        "nested_dropout_rate": 0.0,
        "nested_draw": "independent",
    }
    return Variant(f"separate_{k}", f"separate model, k = {k}", "separate", options)


def _mean_pool(projection: str) -> BuildHead:
    return lambda config, seed: MeanPoolHead(config, seed, projection)
