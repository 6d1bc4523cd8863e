"""Embedding parts on Ray: here, or on the cluster whose address is in ``RAY_ADDRESS``.

Each worker opens the bundle from the same path, and reads items that are files from theirs. The process that was called
hands out parts and writes them, so that an interrupted call is continued with Ray or without.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluxtalk.errors import BackendError
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.bulk.inputs import Item
from fluxtalk.runtime.bulk.stream import DonePart, EmbedOptions, EmbedParts, UndonePart, UndoneParts, embed_part
from fluxtalk.runtime.embedder import open_embedder


@contextmanager
def ray_workers(bundle: Path, backend: BackendOptions, options: EmbedOptions, kind: str) -> Iterator[EmbedParts]:
    """Yield what embeds parts on all CPUs that Ray has: a worker for each, of ``backend.threads`` threads (1).

    Args:
        kind: kind of the items (`Embedder.input_kind`).

    Raises:
        BackendError: Ray is not installed, or its cluster has too few CPUs.
        FluxTalkError: a worker's error, as it would be raised here.
    """
    # What people embed is nobody's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayTaskError
        from ray.util import ActorPool
    except ImportError:
        raise BackendError("Ray is not installed; pip install 'fluxtalk[ray]'.") from None
    threads = backend.threads or 1
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        count = int(ray.cluster_resources().get("CPU", 0)) // threads
        if not count:
            raise BackendError(f"A worker takes {threads} CPUs, which Ray has not; give fewer --threads.")
        remote = ray.remote(num_cpus=threads)(_Worker)
        settings = dataclasses.replace(backend, threads=threads, spinning=False)
        workers = [remote.remote(bundle.resolve(), settings, options) for _ in range(count)]

        def embed(undone: UndoneParts) -> Iterator[DonePart]:
            pool = ActorPool(workers)
            handed: dict[int, UndonePart] = {}

            def finished() -> DonePart:
                try:
                    done: DonePart = pool.get_next_unordered()
                except RayTaskError as error:
                    raise error.cause from None
                return dataclasses.replace(done, part=handed.pop(done.part.number))

            for part in undone:
                while not pool.has_free():
                    yield finished()
                handed[part.number] = part
                pool.submit(lambda worker, work: worker.embed.remote(work), _anywhere(part, kind))
            while pool.has_next():
                yield finished()

        yield embed
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """A loaded bundle in a process of Ray."""

    def __init__(self, bundle: Path, backend: BackendOptions, options: EmbedOptions) -> None:
        self._embedder = open_embedder(bundle, backend)
        self._options = options

    def embed(self, part: UndonePart) -> DonePart:
        """Embed one part."""
        return embed_part(self._embedder, part, self._options)


def _anywhere(part: UndonePart, kind: str) -> UndonePart:
    """Name files by absolute paths: a worker has another working directory."""

    def named(item: Item) -> Item:
        is_path = kind != "text" and isinstance(item.value, str | Path)
        return item._replace(value=os.path.abspath(item.value)) if is_path else item

    return dataclasses.replace(part, items=[named(item) for item in part.items])
