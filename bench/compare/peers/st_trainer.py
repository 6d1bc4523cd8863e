"""Training by sentence-transformers' own trainer, on mean-pooled features of frozen encoders.

Each modality is a route of the library's `Router`: a table that gives features for the number of an id, then its
`Dense` layers. The loss is its `MultipleNegativesRankingLoss` in both directions.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from typing import Any

import numpy as np
from pooled import MODALITIES, Embed, Pooled, run  # type: ignore[import-not-found]
from torch import Tensor, nn


def train(pooled: Pooled, given: dict[str, Any]) -> tuple[Embed, dict[str, Any]]:
    """Train the Dense layers; give how to embed with them, and what it took."""
    library: Any = importlib.import_module("sentence_transformers")
    modules: Any = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    losses: Any = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    datasets: Any = importlib.import_module("datasets")
    options, rng = given["options"], np.random.default_rng(given["seed"])
    dense = {m: _dense(modules, pooled.train[m].shape[1], given["dim"], options) for m in MODALITIES}
    router = modules.Router({m: [_table(modules, pooled, m, rng), *layers] for m, layers in dense.items()})
    model = library.SentenceTransformer(modules=[router], device="cpu")
    # A row is an id in both columns; the tables draw one of its items.
    ids = [str(number) for number in range(pooled.ids)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = library.SentenceTransformerTrainer(
            model=model,
            args=library.SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=given["epochs"],
                per_device_train_batch_size=given["batch_size"],
                learning_rate=options["learning_rate"],
                weight_decay=options["weight_decay"],
                warmup_ratio=0.1,
                lr_scheduler_type="cosine",
                dataloader_drop_last=True,
                router_mapping={m: m for m in MODALITIES},
                seed=given["seed"],
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_dict(dict.fromkeys(MODALITIES, ids)),
            loss=losses.MultipleNegativesRankingLoss(
                model,
                scale=options["scale"],
                directions=("query_to_doc", "doc_to_query"),
                partition_mode="per_direction",
            ),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    model.eval()

    def embed(modality: str, features: Tensor) -> Tensor:
        found = {"sentence_embedding": features}
        for layer in dense[modality]:
            found = layer(found)
        return nn.functional.normalize(found["sentence_embedding"], dim=-1)

    parameters = sum(p.numel() for p in model.parameters())
    return embed, {"steps": trainer.state.global_step, "seconds": seconds, "parameters": parameters}


def _dense(modules: Any, size: int, dim: int, options: dict[str, Any]) -> list[Any]:
    """Build an MLP of the library's own layers: (B, size) to (B, dim)."""
    hidden = options["widening"] * dim
    return [
        modules.LayerNorm(size),
        modules.Dense(size, hidden, activation_function=nn.GELU()),
        modules.Dropout(options["dropout"]),
        modules.Dense(hidden, dim, activation_function=None),
    ]


def _table(modules: Any, pooled: Pooled, modality: str, rng: np.random.Generator) -> Any:
    """Build the first module of a route, which the library asks for a batch's inputs."""

    class Table(modules.InputModule):  # type: ignore[misc]
        def preprocess(self, inputs: list[str], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
            return {"sentence_embedding": pooled.draw(modality, np.array(inputs, dtype=np.int64), rng)}

        def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
            return features

        def save(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError("features are not part of the model")

        def get_embedding_dimension(self) -> int:
            return int(pooled.train[modality].shape[1])

    return Table()


if __name__ == "__main__":
    run(train)
