"""Heads that are put to the proof on every task, and the options among which validation chooses for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.quality.heads import AttentionPoolHead, ManyVectorsHead, MatryoshkaHead, QueryFormerHead
from bench.quality.retrieval.tasks import ITEM, QUERY
from fluxtalk.config import HeadConfig
from fluxtalk.errors import UsageError
from fluxtalk.model.head.baselines import MeanPoolHead
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead

BuildHead = Callable[[HeadConfig, int], TokenHead]

K_VALUES = (1, 2, 4, 8)
TOKEN_DIM = 64
"""Numbers in a token. A head that gives one vector has as many as the first k tokens of the others together."""
FEATURES: Mapping[str, int] = {"glyph-albums": 96, "glyphs": 16, "icons": 49, "icon-albums": 294, "icon-scenes": 49}
"""Task to the most feature vectors of an item, as many as the ColBERT-like head has tokens."""
GRIDS: Mapping[str, str] = {"glyph-albums": "6x16", "icon-albums": "6x49", "icon-scenes": "7x7"}
"""Task to the grid of an item's features, where items hold several things: the places in a scene, or the pictures of an
album, one after the other."""
QUERY_FEATURES = 32
"""Tokens of a query in the ColBERT-like head: more than all but a few names have."""
SWEEP: Mapping[str, Sequence[Any]] = {"token_dropout": (0.1, 0.4)}
"""Options that are tried for every head alike."""


@dataclass(frozen=True)
class Variant:
    """One head, and how it is trained."""

    name: str
    label: str
    kind: str
    """``ours``, ``nested`` (another head that is read at several sizes), ``single`` (one size); ``bound`` and
    ``ablation`` are shown and not compared."""
    options: Mapping[str, Any] = field(default_factory=dict)
    build: BuildHead = RegisterTokenModule.from_config
    counts: tuple[int, ...] = (1,)
    """Numbers of tokens at which it is compared, which are those that it was trained for."""
    tuned_as: str | None = None
    """Head whose choice of swept options it takes; None sweeps for itself."""

    def bytes_per_item(self, count: int) -> int:
        """Bytes of one item in float32, with ``count`` tokens."""
        return 4 * count * int(self.options.get("token_dim") or self.options["dim"])


def sweep_points() -> list[dict[str, Any]]:
    """List every combination of `SWEEP`."""
    return [dict(zip(SWEEP, values, strict=True)) for values in itertools.product(*SWEEP.values())]


def variants(task: str = "glyph-albums") -> dict[str, Variant]:
    """Give all of them by name, ours first, as they are on a task."""
    features = FEATURES[task]
    found = [
        Variant("concat", "register tokens, side by side", "ours", _nested("concat"), counts=K_VALUES),
        # Compared one by one, so none sums up.
        Variant(
            "maxsim",
            "register tokens, late interaction",
            "ours",
            {**_nested("maxsim"), "summary_registers": 1},
            counts=K_VALUES,
        ),
        *_regions(task),
        Variant(
            "matryoshka",
            "Matryoshka over all registers",
            "nested",
            {**_nested("mean"), "summary_registers": 1},
            build=MatryoshkaHead.from_config,
            counts=K_VALUES,
        ),
        Variant(
            "concat-own",
            "register tokens, side by side, none sums up",
            "ablation",
            {**_nested("concat"), "summary_registers": 1},
            counts=K_VALUES,
        ),
        *_single("linear", "mean-pool + linear", lambda config, seed: MeanPoolHead(config, seed, "linear")),
        *_single("mlp", "mean-pool + MLP", lambda config, seed: MeanPoolHead(config, seed, "mlp")),
        *_single("attention-pool", "attention pool", AttentionPoolHead.from_config),
        *(_separate(k) for k in K_VALUES),
        Variant(
            "query-former",
            "Q-Former-like",
            "single",
            {**_tokens(max(K_VALUES)), "aggregation": "maxsim", "dim": TOKEN_DIM, "heads": 2},
            build=QueryFormerHead.from_config,
            counts=(max(K_VALUES),),
        ),
        Variant(
            "many-vectors",
            "ColBERT-like, every feature",
            "bound",
            {**_tokens(features), "aggregation": "maxsim", "token_dim": TOKEN_DIM},
            build=lambda config, seed: ManyVectorsHead(config, seed, {QUERY: QUERY_FEATURES}),
            counts=(features,),
            tuned_as="concat",  # it takes ten times as long
        ),
    ]
    return {variant.name: variant for variant in found}


def variant_named(name: str, task: str = "glyph-albums") -> Variant:
    """Return the variant of that name, as it is on a task.

    Raises:
        UsageError: there is none.
    """
    known = variants(task)
    if name not in known:
        raise UsageError(f"A head is one of {', '.join(known)}; got {name!r}.")
    return known[name]


def _tokens(count: int) -> dict[str, Any]:
    return {"num_register_tokens": count, "num_overlapping_tokens": count, "nested_dropout_rate": 0.0}


def _nested(aggregation: str) -> dict[str, Any]:
    """Options of the recipe, with tokens of `TOKEN_DIM` numbers."""
    return {
        **_tokens(max(K_VALUES)),
        "nested_dropout_rate": 0.5,
        "aggregation": aggregation,
        "output_projection": "per_register",
        "summary_registers": 0,
        "nested_draw": "all",
        "k_values": ",".join(map(str, K_VALUES)),
        "mean_path": "mlp",
        "feed_forward": 1,
        "token_dim": TOKEN_DIM,
        **({"maxsim_sharpness": 10.0} if aggregation == "maxsim" else {}),
    }


def _regions(task: str) -> list[Variant]:
    """List `--recipe regions`, on tasks with a grid: registers of which each has a mean of its own."""
    if task not in GRIDS:
        return []
    own = {"output_projection": "shared", "regions": f"{ITEM}={GRIDS[task]}"}
    return [
        Variant(
            "regions",
            "register tokens of regions, late interaction",
            "ours",
            {**_nested("maxsim"), **own},
            counts=K_VALUES,
        )
    ]


def _single(name: str, label: str, build: BuildHead) -> list[Variant]:
    """A head that gives one vector, at the smallest and at the largest size."""
    return [
        Variant(f"{name}-{k}", f"{label}, {k * TOKEN_DIM}", "single", {**_tokens(1), "dim": k * TOKEN_DIM}, build)
        for k in (min(K_VALUES), max(K_VALUES))
    ]


def _separate(k: int) -> Variant:
    options = {**_nested("concat"), **_tokens(k), "k_values": "", "nested_draw": "independent"}
    return Variant(f"separate-{k}", f"a model for k = {k} alone", "single", options, counts=(k,), tuned_as="concat")
