"""A pipeline of Ray Data on a real, local Ray: Parquet in, Parquet with vectors out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from fluxtalk.integrations.ray_data import EmbedColumn
from fluxtalk.runtime import load
from tests.conftest import Made
from tests.local_ray import ON_RAY, cluster  # noqa: F401  (a fixture of every test here)

pytestmark = ON_RAY
TEXTS = [f"{word} {i}" for i in range(20) for word in ("omega", "black chess queen")]


def test_a_dataset_gets_a_column_of_vectors(made: Made, tmp_path: Path) -> None:
    import ray

    (tmp_path / "in").mkdir()
    for shard in range(2):
        table = pyarrow.table({"caption": TEXTS[shard::2], "row": range(shard, len(TEXTS), 2)})
        pyarrow.parquet.write_table(table, tmp_path / "in" / f"{shard}.parquet")
    arguments = {"bundle": str(made.bundle.folder), "modality": "text", "column": "caption", "k": 2}
    ray.data.read_parquet(str(tmp_path / "in")).map_batches(
        EmbedColumn,
        fn_constructor_kwargs=arguments,
        batch_size=7,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    ).write_parquet(str(tmp_path / "out"))
    rows = pyarrow.parquet.read_table(tmp_path / "out").sort_by("row")
    assert rows.column("caption").to_pylist() == TEXTS
    with load(made.bundle.folder) as embedder:
        assert np.allclose(np.stack(rows.column("vector").to_pylist()), embedder.embed("text", TEXTS, 2), atol=1e-6)


def test_a_row_that_cannot_be_used_is_named(made: Made) -> None:
    from fluxtalk.errors import InputError

    step = EmbedColumn(str(made.bundle.folder), "image", "photo")
    with pytest.raises(InputError, match=r"^photo 'none\.png' cannot be used: .*none\.png"):
        step({"photo": np.array(["none.png"], dtype=object)})
