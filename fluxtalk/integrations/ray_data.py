"""Ray Data: a bundle as a step of a pipeline that reads and writes wherever Ray does.

::

    ray.data.read_parquet("s3://bucket/captions/").map_batches(
        EmbedColumn,
        fn_constructor_kwargs={"bundle": "bundle", "modality": "text", "column": "caption"},
        batch_size=256,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=8),
    ).write_parquet("s3://bucket/vectors/")
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxtalk.errors import InputError
from fluxtalk.runtime import load
from fluxtalk.runtime.bulk.inputs import Item
from fluxtalk.runtime.bulk.stream import EmbedOptions, embed_part


class EmbedColumn:
    """Adds a column of vectors to batches; Ray Data makes one in each of its actors.

    Args:
        bundle: what `fluxtalk.load` takes, on every machine.
        modality: modality of the items.
        column: column of the items: texts, bytes of files, paths, or addresses in object storage.
        into: name of the new column.
        k: register tokens to compute, from the first; None takes all.
        output: ``pooled``, ``tokens``, ``concat`` or ``complementary``.
        dimensions, dtype, role: as `Embedder.embed` takes them.
        threads: threads of an actor, the ``num_cpus`` that Ray gives it.

    Raises:
        FluxTalkError: as for `fluxtalk.load`.
    """

    def __init__(
        self,
        bundle: str,
        modality: str,
        column: str,
        into: str = "vector",
        k: int | None = None,
        output: str = "pooled",
        dimensions: int | None = None,
        dtype: str = "float32",
        role: str | None = None,
        threads: int = 1,
    ) -> None:
        self._embedder = load(bundle, threads=threads, modalities=[modality], spinning=False)
        self._column, self._into = column, into
        self._options = EmbedOptions(modality, k, output, dtype, role=role, dimensions=dimensions)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed a batch: column to array (rows, ...), and back with (rows, dimensions...) more.

        Raises:
            InputError: a row cannot be embedded; its value is named.
        """
        items = [Item(str(value), value) for value in batch[self._column].tolist()]
        made = embed_part(self._embedder, items, 0, self._options)
        if made.bad:
            position, why = next(iter(made.bad.items()))
            raise InputError(f"{self._column} {items[position].id[:60]!r} cannot be used: {why}")
        return {**batch, self._into: np.ascontiguousarray(made.vectors)}
