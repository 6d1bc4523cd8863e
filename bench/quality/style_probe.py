"""Probe of drawing style: does a picture's complementary token say how it is drawn? Icons and emoji, real features.

Reads a table of `bench.icons`, in which a thing has pictures in several styles (four vendors of emoji, for one), and
its cached features of the training split. Heads are trained on three quarters of the things, and everything is
measured on pictures of the others; the test split is not touched.

*Found*: how often a held-out name finds a picture of its thing among the first ten by the overlapping tokens, which is
what an objective of the complementary token may cost.

*Style by neighbors*: how often the nearest picture of *another thing* is drawn in the same style. *Leak*: how often the
nearest picture of all shows the same thing, where there is another picture of it: a token that says how, not what,
has little. *64 labels*: accuracy of a logistic regression on so few labeled pictures, over ten draws.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.encoders.torchvision_operators import declare_torchvision_operators
from bench.markdown import markdown_table
from bench.quality.probes import paired_bootstrap_difference
from bench.quality.report import ResultStore, machine_info, one_thread
from bench.quality.style_data import BATCH, MODALITY, StyleData, StyledPictures, read_styles, style_data
from fluxtalk.arrays import Floats, Integers
from fluxtalk.artifacts.files import Identity, hash_json
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.config import HeadConfig
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import TrainingError
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.scoring.metrics import first_hit_ranks, recall_at
from fluxtalk.scoring.retrieval import ItemTokens
from fluxtalk.tokens import l2_normalize
from fluxtalk.train.config import RECIPES, TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.inputs import read_inputs
from fluxtalk.train.loop.sampler import PairSampler
from fluxtalk.train.records.log import RunLog
from fluxtalk.train.results.score import all_tokens

EMOJI = ("apple", "facebook", "google", "twitter")
LABELS, DRAWS = 64, 10
_CONTRAST = {"complementary_objective": "contrast", "complementary_correlation_weight": 0.3}
_DIFFERENCE = {"complementary_objective": "difference", "items_per_id": 4}
_MEAN_PATH = {"mean_path": "mlp", "output_projection": "per_register"}
VARIANTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "untrained": ("untrained register", None),
    "difference-4": ("difference, 4 items per id", _DIFFERENCE),
    "difference-4-weight-10": (
        "difference, 4 items per id, weight 10",
        {**_DIFFERENCE, "complementary_objective_weight": 10.0},
    ),
    "difference-4-mean-path": (
        "the same, mean path (MLP), an output for each register",
        {**_DIFFERENCE, "complementary_objective_weight": 10.0, **_MEAN_PATH},
    ),
    "difference-4-mean-path-weight-100": (
        "the same, weight 100",
        {**_DIFFERENCE, "complementary_objective_weight": 100.0, **_MEAN_PATH},
    ),
    "recipe-difference": ("`--recipe difference`", RECIPES["difference"]),
    "recipe-recommended": ("`--recipe recommended`, without a complementary token", RECIPES["recommended"]),
    "mean-path": ("L2 + diversity, mean path, 4 items per id", {**_MEAN_PATH, "items_per_id": 4}),
    "none": ("L2 + diversity", {"items_per_id": 1}),
    "contrast-1": ("contrast, 1 item per id", {**_CONTRAST, "items_per_id": 1}),
    "contrast-4": ("contrast, 4 items per id", {**_CONTRAST, "items_per_id": 4}),
}
"""Name to label and training options; None leaves the random weights."""


def mean_features(source: FeatureSource) -> Floats:
    """Average each item's normalized features: (items, E)."""
    parts = []
    for start in range(0, len(source), BATCH):
        features, _ = source.batch(np.arange(start, min(start + BATCH, len(source))))
        parts.append(F.layer_norm(features.float(), features.shape[-1:]).mean(dim=1).numpy())
    return np.concatenate(parts)


def class_means(vectors: Floats, classes: Integers) -> Floats:
    """Average the vectors of each class: (classes, E); 0 for a number that no vector has."""
    total = np.zeros((int(classes.max()) + 1, vectors.shape[1]), dtype=vectors.dtype)
    np.add.at(total, classes, vectors)
    means: Floats = (total / np.maximum(np.bincount(classes), 1)[:, None]).astype(np.float32)
    return means


def _cosines(vectors: Floats) -> Floats:
    unit = l2_normalize(vectors)
    cosines: Floats = unit @ unit.T
    return cosines


def style_hits(vectors: Floats, styles: NDArray[np.str_], things: Integers) -> NDArray[np.bool_]:
    """Tell of each picture whether its nearest picture of another thing, by cosine, has its style: (pictures,)."""
    cosine = _cosines(vectors)
    cosine[things[:, None] == things[None]] = -np.inf
    hits: NDArray[np.bool_] = styles[cosine.argmax(axis=1)] == styles
    return hits


def leak(vectors: Floats, things: Integers) -> float:
    """Share of pictures whose nearest picture shows the same thing, among those that have another of their thing."""
    cosine = _cosines(vectors)
    np.fill_diagonal(cosine, -np.inf)
    several = (things[:, None] == things[None]).sum(axis=1) > 1
    return float((things[cosine.argmax(axis=1)] == things)[several].mean())


def few_labels(vectors: Floats, styles: NDArray[np.str_]) -> float:
    """Accuracy of a logistic regression fitted to 64 pictures, on the others; the mean of ten draws."""
    found = []
    for seed in range(DRAWS):
        order = np.random.default_rng(seed).permutation(len(vectors))
        fitted, scored = order[:LABELS], order[LABELS:]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
        found.append(model.fit(vectors[fitted], styles[fitted]).score(vectors[scored], styles[scored]))
    return float(np.mean(found))


def measure(vectors: Floats, pictures: StyledPictures, base: Floats) -> dict[str, Any]:
    """Measure vectors of the held-out pictures: of the emoji among them, and of all.

    Args:
        vectors: (pictures, any width), in the order of ``pictures``.
        base: the vectors to compare with, (pictures, any width).
    """
    found = {}
    for name, chosen in (
        ("emoji", np.isin(pictures.styles, EMOJI)),
        ("all", np.ones(len(pictures.styles), dtype=bool)),
    ):
        styles, things = pictures.styles[chosen], pictures.things[chosen]
        own, other = (style_hits(v[chosen], styles, things) for v in (vectors, base))
        # Pictures of one thing are not independent: the interval is over things.
        names = np.unique(things)
        own_share, other_share = ([hits[things == thing].mean() for thing in names] for hits in (own, other))
        above = paired_bootstrap_difference(own_share, other_share, seed=0)
        found[name] = {
            "pictures": len(styles),
            "things": len(names),
            "style_by_neighbors": round(float(own.mean()), 4),
            "leak": round(leak(vectors[chosen], things), 4),
            "few_labels": round(few_labels(vectors[chosen], styles), 4),
            "above_mean_features": [round(x, 4) for x in above],
        }
    return found


def trained_head(options: Mapping[str, Any] | None, data: StyleData, steps: int, seed: int) -> TokenHead:
    """Train a head on the data's pairs; None leaves its random weights.

    Raises:
        TrainingError: training was stopped by a signal, or its loss is not finite.
    """
    common: dict[str, Any] = {"batch_size": 256, "dim": 128, "heads": 4, "learning_rate": 2e-3, "token_dropout": 0.1}
    given = {**common, "feature_dropout": 0.1, **(options or {}), "seed": seed, "device": "cpu"}
    config = TrainConfig("cached", "cached", "style", **given)
    sampler = PairSampler(data.split, config.batch_size, 1, 0, seed, 1, config.items_per_id)
    epochs = -(-steps // sampler.steps_per_epoch)
    config = replace(config, epochs=epochs, eval_every=epochs)
    shared = {name: getattr(config, name) for name in HeadConfig.__dataclass_fields__ if name != "dims"}
    torch.manual_seed(seed)
    head = RegisterTokenModule.from_config(HeadConfig({m: s.dim for m, s in data.sources.items()}, **shared), seed)
    if options is None:
        return head.eval()
    trainer = Trainer(config, head, data.sources, sampler, SingleProcess(), "cached", Identity())
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Identity(), None, active=False)
        if not trainer.run(RunFolder(Path(folder)), log, lambda _: {"score": 0.0}):
            raise TrainingError("Training was stopped by a signal; start the benchmark again to go on.")
    return head.eval()


def complementary(head: TokenHead, source: FeatureSource) -> Floats:
    """Compute the complementary tokens of all items, each of length 1, side by side."""
    tokens = all_tokens(head, MODALITY, source, np.arange(len(source)))[:, head.config.num_overlapping_tokens :]
    return l2_normalize(tokens).reshape(len(tokens), -1)


def found_by_name(head: TokenHead, data: StyleData) -> float:
    """Score names of held-out things against all held-out pictures, by the overlapping tokens: R@10."""
    config = head.config
    sources = {MODALITY: (data.pictures, data.held_out.things), **data.names}
    vectors = {
        m: ItemTokens(
            all_tokens(head, m, source, np.arange(len(source))), config.num_overlapping_tokens, config.aggregation
        ).prefix(config.num_overlapping_tokens)
        for m, (source, _) in sources.items()
    }
    ranks = [first_hit_ranks(vectors[m], vectors[MODALITY], sources[m][1], sources[MODALITY][1]) for m in data.names]
    return recall_at(np.concatenate(ranks))["10"]


def fitted_maps(pictures: StyledPictures, base: Floats) -> dict[str, Floats]:
    """Fit two linear maps of mean features, to say how much of the style such a map can hold.

    Args:
        pictures: to fit them to.
        base: (held-out pictures, E), mean features, which are mapped.

    Returns:
        ``ridge``: the differences, predicted by ridge regression; ``discriminant``: directions that tell the styles
        apart, fitted to the styles themselves, which no objective sees.
    """
    seen = mean_features(pictures.features)
    away = seen - class_means(seen, pictures.things)[pictures.things]
    several = np.bincount(pictures.things)[pictures.things] > 1
    ridge = RidgeCV(np.logspace(1, 4, 7)).fit(seen[several], away[several])
    labeled = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(seen, pictures.styles)
    return {"ridge": ridge.predict(base), "discriminant": labeled.transform(base)}


def run(data: StyleData, steps: int, seed: int, store: ResultStore, mark: str) -> dict[str, Any]:
    """Measure everything that the store does not hold yet; name to result."""
    base = mean_features(data.held_out.features)
    fixed = {
        "mean": base,
        "mean-reduced": mean_features(data.pictures),
        "differences": base - class_means(base, data.held_out.things)[data.held_out.things],
        **fitted_maps(data.seen, base),
    }
    for name, vectors in fixed.items():
        if store.get(name, mark) is None:
            store.put(name, mark, measure(vectors, data.held_out, base))
    for name, (_, options) in VARIANTS.items():
        if store.get(name, mark) is None:
            click.echo(name)
            head = trained_head(options, data, steps, seed)
            tokens = complementary(head, data.pictures)
            measured = measure(tokens, data.held_out, base) if tokens.shape[1] else {}
            store.put(name, mark, {**measured, "found": round(found_by_name(head, data), 4)})
    return {name: store.get(name, mark) for name in (*fixed, *VARIANTS)}


def table(results: Mapping[str, Any]) -> str:
    """Format the results in percent, one table for emoji and one for all pictures."""
    labels = {
        "mean": "mean-pooled features",
        "mean-reduced": "the same, principal components",
        "differences": "the differences themselves, which need the thing's other pictures",
        "ridge": "the differences, by ridge regression from mean features",
        "discriminant": "discriminant analysis, fitted to the styles themselves",
    }
    labels |= {name: label for name, (label, _) in VARIANTS.items()}
    parts = []
    for kind in ("emoji", "all"):
        rows = []
        for name, result in results.items():
            cells = [""] * 4
            if kind in result:
                one = result[kind]
                above, low, high = (100 * x for x in one["above_mean_features"])
                cells = [f"{100 * one[figure]:.1f}" for figure in ("style_by_neighbors", "leak", "few_labels")]
                cells.append(f"{above:+.1f} ({low:+.1f} to {high:+.1f})")
            rows.append([labels[name], *cells, f"{100 * result['found']:.1f}" if "found" in result else ""])
        head = [f"{kind}: vectors", "style by neighbors", "leak", "64 labels", "above mean-pooled, per thing", "found"]
        parts.append(markdown_table(head, rows))
    return "\n\n".join(parts)


@click.command()
@option("--stage1-checkpoint", required=True, help="Frozen encoders.")
@option("--data", required=True, help="Table of `bench.icons`: TABLE?image=image&text=text&id=id&split=split.")
@option("--cache-dir", default=None, help="Folder of cached features.")
@option(
    "--width", default=128, type=click.IntRange(min=8), show_default=True, help="Principal components of a feature."
)
@option("--steps", default=156, type=click.IntRange(min=1), show_default=True, help="Steps of 256 rows, rounded up.")
@option("--pictures", default=None, type=click.IntRange(min=256), help="Only the first pictures of the split.")
@option("--seed", default=0, show_default=True, help="Seed of heads and batches.")
@click.option(
    "-o", "--output", default="bench/results/quality/style.json", show_default=True, type=click.Path(path_type=Path),
    help="The results file, which also keeps what an interrupted call has finished.",
)  # fmt: skip
@debug_option
@sentence_errors
def main(
    stage1_checkpoint: str,
    data: str,
    cache_dir: str | None,
    width: int,
    steps: int,
    pictures: int | None,
    seed: int,
    output: Path,
) -> None:
    """Train heads on cached features, measure what OUTPUT does not hold yet, in one thread, and print the tables."""
    declare_torchvision_operators()  # timm imports torchvision
    config = TrainConfig(stage1_checkpoint, "cached", "style", data=data, cache_dir=cache_dir, device="cpu")
    inputs = read_inputs(config, SingleProcess(), torch.device("cpu"))
    split = inputs.dataset.split("train")
    styles = read_styles(data, split.items[MODALITY].values)[:pictures]
    with one_thread():
        prepared = style_data(split, inputs.sources("train", say=click.echo), styles, width)
        budget = {"steps": steps, "width": width, "pictures": len(styles), "seed": seed}
        store = ResultStore(output)
        results = run(prepared, steps, seed, store, hash_json({**budget, "data": inputs.dataset.content_hash}))
        store.finish(results, {**machine_info(), "budget": budget, "data_hash": inputs.dataset.content_hash})
    click.echo(table(results))


if __name__ == "__main__":
    main()
