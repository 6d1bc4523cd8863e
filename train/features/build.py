"""Building a feature cache: every item encoded once, shard by shard, so that an interrupted build goes on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from fluxtalk.artifacts.cache import (
    LENGTHS,
    MANIFEST,
    SCALES,
    VALUES,
    CacheKey,
    CacheManifest,
    CacheShard,
    lock_file,
    read_shard,
    shard_file,
    write_pairs,
)
from fluxtalk.artifacts.files import atomic_file, hash_file
from fluxtalk.artifacts.unfinished import remove
from fluxtalk.console import Log, progress
from fluxtalk.errors import UsageError
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.train.features.encode_batch import MOST, EncodeBatch
from fluxtalk.train.features.encode_shard import Decoded, EncodedShard, encode_shard, require_some
from fluxtalk.train.features.encoding import Encoding

_MOST_ITEMS = 16 * MOST
"""Items per shard. They are sorted by length within it, and a killed build loses no more than its current shard."""
_SHARD_BYTES = 256 * 2**20
PREPARING_THREADS = min(4, os.cpu_count() or 1)
_PREPARED_TOGETHER = 32


@contextmanager
def build_lock(folder: Path, group: ProcessGroup, say: Log) -> Iterator[bool]:
    """Yield whether this run is to build the cache, held against other runs meanwhile.

    The first process decides for all of ``group``, which must share the folder.
    """
    with ExitStack() as held:
        missing = torch.zeros(1)
        if group.rank == 0 and not (folder / MANIFEST).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(folder, say))
            missing[0] = not (folder / MANIFEST).is_file()
            if missing.item():
                for leftover in folder.glob(".*.tmp"):
                    remove(leftover)
        yield bool(group.all_reduce_sum(missing).item())


def build_cache(
    encoding: Encoding, key: CacheKey, folder: Path, group: ProcessGroup, say: Log, items_per_shard: int | None = None
) -> None:
    """Encode every item once into a cache folder; shards that an earlier build finished are kept.

    Shard j is encoded by process j % size, and the first process writes the manifest when all are done. A process
    that fails ends with its error, and torchrun then ends the others.

    Args:
        items_per_shard: by default a power of two that makes about 256 MB, at most 4,096.

    An item that cannot be used gets no vector, and its shard's record says why.

    Raises:
        DataError: not one of the items of a shard can be used.
    """
    items = encoding.items
    per_shard = items_per_shard or _items_per_shard(encoding)
    rows = [range(start, min(start + per_shard, len(items))) for start in range(0, len(items), per_shard)]
    mine = range(group.rank, len(rows), group.size)
    todo = [index for index in mine if not _is_finished(folder, index, key, rows[index])]
    if len(todo) < len(mine):
        say(f"{folder.name}: {len(mine) - len(todo)} of {len(mine)} shards are there from an interrupted build")
    what = f"encoding {key.split} {key.modality}"
    pool = ThreadPoolExecutor(PREPARING_THREADS)
    batch = EncodeBatch(encoding, say)
    try:
        with progress(None, what, total=sum(len(rows[index]) for index in todo), unit="item") as bar:
            prepared = _prepare(pool, encoding, [rows[index] for index in todo])
            for index, arrays in zip(todo, prepared, strict=True):
                encoded = encode_shard(encoding, arrays, rows[index], batch, key.dtype, bar)
                require_some(encoding, len(arrays), encoded.bad)
                write_shard(folder, index, key, rows[index].start, encoded)
    finally:
        pool.shutdown(cancel_futures=True)
    group.all_reduce_sum(torch.zeros(1))  # every shard is there
    if group.rank == 0:
        _finish(encoding, key, folder, per_shard, len(rows))
    group.all_reduce_sum(torch.zeros(1))  # and the manifest


def write_shard(
    folder: Path,
    index: int,
    key: CacheKey,
    start: int,
    encoded: EncodedShard,
) -> None:
    """Write a shard's files and last, so that the shard counts only when whole, the record with their checksums."""
    parts = {VALUES: encoded.values, LENGTHS: encoded.lengths}
    parts |= {} if encoded.scales is None else {SCALES: encoded.scales}
    hashes = {}
    for part, array in parts.items():
        path = folder / shard_file(index, part)
        with atomic_file(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, array)
            hashes[path.name] = hash_file(temporary)
    bad = {str(row): why for row, why in encoded.bad.items()}
    CacheShard(key.hash(), start, len(encoded.lengths), len(encoded.values), hashes, bad).write(folder, index)


def _prepare(pool: ThreadPoolExecutor, encoding: Encoding, shards: Sequence[range]) -> Iterator[list[Decoded]]:
    """Decode one shard after the other, the next one while the caller encodes the current."""

    def submit(rows: range) -> Iterator[list[Decoded]]:
        parts = [rows[start : start + _PREPARED_TOGETHER] for start in range(0, len(rows), _PREPARED_TOGETHER)]
        return pool.map(lambda part: [encoding.try_decoding(row) for row in part], parts)

    upcoming = submit(shards[0]) if shards else iter(())
    for number in range(len(shards)):
        arrays = [array for part in upcoming for array in part]
        if number + 1 < len(shards):
            upcoming = submit(shards[number + 1])
        yield arrays


def _items_per_shard(encoding: Encoding) -> int:
    """A power of two that keeps a shard's decoded items, and its features, within 256 MB; the same in every build."""
    count = len(encoding.items)
    if not count:
        return _MOST_ITEMS
    rows = sorted(set(np.linspace(0, count - 1, 16).astype(int).tolist()))
    decoded = [(row, array) for row in rows if not isinstance(array := encoding.try_decoding(row), str)]
    vectors = sum(int(features.mask_BL.sum()) for _, features in encoding.encode_usable(decoded, {}))
    per_item = max(sum(array.nbytes for _, array in decoded), 2 * vectors * encoding.reduction.dim)
    fitting = _SHARD_BYTES * len(decoded) / max(1, per_item)
    return min(_MOST_ITEMS, 1 << max(0, int(math.log2(max(1, fitting)))))


def _is_finished(folder: Path, index: int, key: CacheKey, rows: range) -> bool:
    """Return whether an earlier build left this shard whole."""
    try:
        shard = read_shard(folder, index)
        expected = (key.hash(), rows.start, len(rows))
        return (shard.key, shard.start, shard.items) == expected and shard.intact(folder)
    except (OSError, ValueError, TypeError, AttributeError, UsageError):
        return False


def _finish(encoding: Encoding, key: CacheKey, folder: Path, per_shard: int, shards: int) -> None:
    """Write the pairs and the manifest, after which the folder is a cache."""
    records = [read_shard(folder, index) for index in range(shards)]
    CacheManifest(
        key=key,
        dim=encoding.reduction.dim,
        items=len(encoding.items),
        vectors=sum(shard.vectors for shard in records),
        items_per_shard=per_shard,
        reduction=encoding.reduction.config.to_dict(),
        pairs_sha256=write_pairs(folder, encoding.split.ids, encoding.items.groups.tolist()),
        shards=tuple(records),
    ).write(folder)


@contextmanager
def _locked(folder: Path, say: Log) -> Iterator[None]:
    """Hold the folder against other runs; the operating system releases it when the process ends, however it ends."""
    lock = FileLock(lock_file(folder))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{folder.name} is being built by another run; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
