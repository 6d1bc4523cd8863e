"""Probe of drawing style: does a picture's complementary token say how it is drawn? Icons and emoji, real features.

Reads a table of `bench.icons`, in which a thing has pictures in several styles (four vendors of emoji, for one), and
its cached features of the training split. Heads are trained on three quarters of the things, and everything is
measured on pictures of the others; the test split is not touched.

*Style by neighbors*: how often the nearest picture of *another thing* is drawn in the same style. *Leak*: how often the
nearest picture of all shows the same thing, where there is another picture of it: a token that says how, not what,
has little. *64 labels*: accuracy of a logistic regression on so few labeled pictures, over ten draws.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.markdown import markdown_table
from bench.quality.probes import paired_bootstrap_difference
from bench.quality.report import ResultStore, machine_info, one_thread
from fluxtalk.arrays import Floats, Integers
from fluxtalk.artifacts.files import Identity, hash_json
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.config import HeadConfig
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import DataError, TrainingError
from fluxtalk.model.encoders import Features
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.tokens import l2_normalize
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.inputs import read_inputs
from fluxtalk.train.loop.sampler import PairSampler
from fluxtalk.train.records.log import RunLog
from fluxtalk.train.results.score import all_tokens

MODALITY = "image"
EMOJI = ("apple", "facebook", "google", "twitter")
LABELS, DRAWS = 64, 10
HELD_OUT = 4
"""One of so many things is held out."""
PARTS = 7
"""Averages of a picture's features that heads read, the rows of its grid; a text's is one. With principal components
of them, a head trains in a minute of one core."""
_BATCH = 512
_FITTED = 256
"""Pictures that principal components are fitted to."""
_CONTRAST = {"complementary_objective": "contrast", "complementary_correlation_weight": 0.3}
VARIANTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "untrained": ("untrained register", None),
    "difference-4": ("difference, 4 items per id", {"complementary_objective": "difference", "items_per_id": 4}),
    "difference-4-weight-10": (
        "difference, 4 items per id, weight 10",
        {"complementary_objective": "difference", "complementary_objective_weight": 10.0, "items_per_id": 4},
    ),
    "none": ("L2 + diversity", {"items_per_id": 1}),
    "contrast-1": ("contrast, 1 item per id", {**_CONTRAST, "items_per_id": 1}),
    "contrast-4": ("contrast, 4 items per id", {**_CONTRAST, "items_per_id": 4}),
}
"""Name to label and training options; None leaves the random weights."""


class ReducedFeatures:
    """A few averages of each item's features, or principal components of those, in memory. A `FeatureSource`.

    Args:
        source: the features.
        rows: (items,) of the source, in the order in which they are numbered here.
        parts: number of equal runs of features to average; the number of features is a multiple of it, or it is 1.
        mean: (E,), which is subtracted.
        components: (E, reduced); None keeps the averages as they are.
    """

    def __init__(
        self,
        source: FeatureSource,
        rows: Integers,
        parts: int,
        mean: torch.Tensor | None = None,
        components: torch.Tensor | None = None,
    ) -> None:
        batches = (_averages(source, rows[i : i + _BATCH], parts) for i in range(0, len(rows), _BATCH))
        if mean is None or components is None:
            self._values = torch.cat(list(batches))
        else:
            self._values = torch.cat([(batch - mean) @ components for batch in batches])
        self.dim = self._values.shape[-1]

    def __len__(self) -> int:
        return len(self._values)

    def batch(self, rows: Integers) -> Features:
        """Return the features of some rows and their mask; row -1 has none."""
        known = torch.from_numpy(rows >= 0)
        return Features(self._values[rows], known[:, None].expand(-1, self._values.shape[1]))


class SomeRows:
    """Some rows of a source, numbered anew. A `FeatureSource`."""

    def __init__(self, source: FeatureSource, rows: Integers) -> None:
        self.dim, self._source, self._rows = source.dim, source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Integers) -> Features:
        """Return the features of some rows and their mask; row -1 has none."""
        return self._source.batch(np.where(rows < 0, -1, self._rows[rows]))


@dataclass(frozen=True)
class StyleData:
    """Pairs to train heads on, and held-out pictures to measure."""

    split: Split
    """Pairs of the things to train on, renumbered."""
    sources: Mapping[str, FeatureSource]
    """Features of those pairs."""
    pictures: FeatureSource
    """Features of held-out pictures, as heads read them."""
    raw: FeatureSource
    """The same pictures' features as they are cached."""
    things: Integers
    """(pictures,): class numbers of what a held-out picture shows."""
    styles: NDArray[np.str_]
    """(pictures,): style of each held-out picture."""


def style_data(split: Split, sources: Mapping[str, FeatureSource], styles: NDArray[np.str_], width: int) -> StyleData:
    """Divide the things, and reduce the pictures' features to principal components of the training pictures.

    Args:
        styles: (pictures,): style of every picture that has features, which may be the first of the split alone.
        width: numbers that a feature vector is reduced to, so that heads train in minutes.
    """
    groups = {m: items.groups for m, items in split.items.items()}
    groups[MODALITY] = groups[MODALITY][: len(styles)]
    whole = int(groups[MODALITY].max())
    train_ids = np.array([i for i in range(whole) if i % HELD_OUT])
    rows = {m: np.flatnonzero(np.isin(g, train_ids)) for m, g in groups.items()}
    held_out = np.flatnonzero((groups[MODALITY] < whole) & ~np.isin(groups[MODALITY], train_ids))
    items = {
        m: Items(list(range(len(r))), np.searchsorted(train_ids, groups[m][r]), np.ones(len(r), dtype=bool))
        for m, r in rows.items()
    }
    ids = tuple(split.ids[i] for i in train_ids)
    source = sources[MODALITY]
    mean, components = _principal_components(source, rows[MODALITY], width)
    texts = {m: ReducedFeatures(s, rows[m], 1) for m, s in sources.items() if m != MODALITY}
    return StyleData(
        Split("train", ids, items, np.zeros(len(ids), dtype=bool)),
        {MODALITY: ReducedFeatures(source, rows[MODALITY], PARTS, mean, components), **texts},
        ReducedFeatures(source, held_out, PARTS, mean, components),
        SomeRows(source, held_out),
        groups[MODALITY][held_out],
        styles[held_out],
    )


def _averages(source: FeatureSource, rows: Integers, parts: int) -> torch.Tensor:
    """Average each item's features in equal runs: (rows, parts, E)."""
    features, mask = source.batch(rows)
    if parts == 1:
        total = (features * mask[..., None]).sum(dim=1, keepdim=True)
        return total / mask.sum(dim=1).clamp_min(1)[:, None, None]
    return features.reshape(len(features), parts, -1, features.shape[-1]).mean(dim=2)


def _principal_components(source: FeatureSource, rows: Integers, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = np.random.default_rng(0).permutation(rows)[:_FITTED]
    vectors = _averages(source, np.sort(drawn), PARTS).flatten(0, 1)
    mean = vectors.mean(dim=0)
    _, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean))
    return mean, directions[:, -width:]


def mean_features(source: FeatureSource) -> Floats:
    """Average each item's normalized features: (items, E)."""
    parts = []
    for start in range(0, len(source), _BATCH):
        features, _ = source.batch(np.arange(start, min(start + _BATCH, len(source))))
        parts.append(F.layer_norm(features.float(), features.shape[-1:]).mean(dim=1).numpy())
    return np.concatenate(parts)


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


def measure(vectors: Floats, data: StyleData, base: Floats) -> dict[str, Any]:
    """Measure vectors of the held-out pictures: of the emoji among them, and of all.

    Args:
        base: the vectors to compare with, (pictures, any width).
    """
    found = {}
    for name, chosen in (("emoji", np.isin(data.styles, EMOJI)), ("all", np.ones(len(data.styles), dtype=bool))):
        styles, things = data.styles[chosen], data.things[chosen]
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
    config = TrainConfig(
        "cached", "cached", "style", batch_size=256, dim=128, heads=4, learning_rate=2e-3, token_dropout=0.1,
        feature_dropout=0.1, seed=seed, device="cpu", **(options or {}),
    )  # fmt: skip
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


def read_styles(data: str, pictures: Sequence[Any], column: str = "style") -> NDArray[np.str_]:
    """Read each picture's style from the table that ``data`` names.

    Raises:
        DataError: the table has no such column, or lacks a picture.
    """
    table = Path(data.partition("?")[0])
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or column not in rows[0]:
        raise DataError(f"{table} has no column {column!r}; give a table that `python -m bench.icons` wrote.")
    known = {(table.parent / row[MODALITY]).resolve(): row[column] for row in rows}
    try:
        return np.array([known[Path(picture).resolve()] for picture in pictures])
    except KeyError as error:
        raise DataError(f"{table} names no style of {error}.") from None


def run(data: StyleData, steps: int, seed: int, store: ResultStore, mark: str) -> dict[str, Any]:
    """Measure everything that the store does not hold yet; name to result."""
    base = mean_features(data.raw)
    fixed = {"mean": base, "mean-reduced": mean_features(data.pictures)}
    for name, vectors in fixed.items():
        if store.get(name, mark) is None:
            store.put(name, mark, measure(vectors, data, base))
    for name, (_, options) in VARIANTS.items():
        if store.get(name, mark) is None:
            click.echo(name)
            head = trained_head(options, data, steps, seed)
            store.put(name, mark, measure(complementary(head, data.pictures), data, base))
    return {name: store.get(name, mark) for name in (*fixed, *VARIANTS)}


def table(results: Mapping[str, Any]) -> str:
    """Format the results in percent, one table for emoji and one for all pictures."""
    labels = {"mean": "mean-pooled features", "mean-reduced": "the same, principal components"}
    labels |= {name: label for name, (label, _) in VARIANTS.items()}
    parts = []
    for kind in ("emoji", "all"):
        rows = []
        for name, result in results.items():
            one = result[kind]
            above, low, high = (100 * x for x in one["above_mean_features"])
            rows.append(
                [
                    labels[name],
                    *(f"{100 * one[figure]:.1f}" for figure in ("style_by_neighbors", "leak", "few_labels")),
                    f"{above:+.1f} ({low:+.1f} to {high:+.1f})",
                ]
            )
        head = [f"{kind}: vectors", "style by neighbors", "leak", "64 labels", "above mean-pooled, per thing"]
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
