"""Embedding parts on Ray: here, or on the cluster whose address is in ``RAY_ADDRESS``.

Each worker opens the bundle from the same path, and reads items that are files from theirs. The process that was called
hands out parts, so that an interrupted call is continued with Ray or without. It writes them too, unless the output is
in object storage: then each worker writes its own.

Actors and not Ray Data: `docs/scaling.md` says why.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.storage import RemotePath
from fluxtalk.errors import BackendError
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.bulk.inputs import Item, is_stored
from fluxtalk.runtime.bulk.parts import PartFiles
from fluxtalk.runtime.bulk.stream import EmbeddedPart, EmbedOptions, EmbedParts, UndonePart, UndoneParts, embed_part
from fluxtalk.runtime.embedder import Embedder, open_embedder

_AT_HAND = 2
"""Parts that a worker has been given: one that it embeds, and the next."""
_RESTARTS = 3
"""Times that a worker is started again, and a part tried again, if its process or its machine ends."""


@contextmanager
def ray_workers(bundle: Path, backend: BackendOptions, options: EmbedOptions, kind: str) -> Iterator[EmbedParts]:
    """Yield what embeds parts on all CPUs that Ray has: a worker for each, of ``backend.threads`` threads (1).

    Args:
        kind: kind of the items (`Embedder.input_kind`).

    Raises:
        BackendError: Ray is not installed, its cluster has too few CPUs, or a worker ended again and again.
        FluxTalkError: a worker's error, as it would be raised here.
    """
    # What people embed is nobody's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayActorError, RayTaskError
    except ImportError:
        raise BackendError("Ray is not installed; pip install 'fluxtalk[ray]'.") from None
    threads = backend.threads or 1
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    workers: list[Any] = []
    try:
        count = int(ray.cluster_resources().get("CPU", 0)) // threads
        if not count:
            raise BackendError(f"A worker takes {threads} CPUs, which Ray has not; give fewer --threads.")
        remote = ray.remote(num_cpus=threads, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(_Worker)
        settings = dataclasses.replace(backend, threads=threads, spinning=False)
        workers += [remote.remote(bundle.resolve(), settings, options, kind, os.getcwd()) for _ in range(count)]

        def embed(undone: UndoneParts, parts: PartFiles) -> Iterator[tuple[UndonePart, dict[int, str]]]:
            free = deque(workers * _AT_HAND)
            running: dict[Any, tuple[UndonePart, Any]] = {}
            written_there = isinstance(parts.folder, RemotePath)

            def finished() -> tuple[UndonePart, dict[int, str]]:
                (first,), _ = ray.wait(list(running), num_returns=1)
                part, worker = running.pop(first)
                free.append(worker)
                try:
                    made: EmbeddedPart | dict[int, str] = ray.get(first)
                except RayTaskError as error:
                    raise error.cause from None
                except RayActorError as error:
                    raise BackendError(
                        f"A worker of Ray ended {_RESTARTS + 1} times ({' '.join(str(error).split())[:200]}); finished "
                        "parts are kept, and the same command goes on. Give fewer, larger workers by --threads."
                    ) from None
                if not isinstance(made, EmbeddedPart):
                    return part, made
                parts.write(part.number, part.items, made.vectors, made.bad)
                return part, made.bad

            for part in undone:
                while not free:
                    yield finished()
                worker = free.popleft()
                running[worker.embed.remote(part, parts if written_there else None)] = (part, worker)
            while running:
                yield finished()

        yield embed
    finally:
        for worker in workers:
            ray.kill(worker)  # a Ray that was running before needs its CPUs for others
        if started:
            ray.shutdown()


class _Worker:
    """A bundle in a process of Ray.

    Args:
        folder: what relative paths of items are relative to: the process that was called has another than this one.
    """

    def __init__(self, bundle: Path, backend: BackendOptions, options: EmbedOptions, kind: str, folder: str) -> None:
        self._bundle, self._backend, self._options, self._kind, self._folder = bundle, backend, options, kind, folder

    @cached_property
    def _embedder(self) -> Embedder:
        """The loaded bundle: at the first part, whose error is then this one's."""
        return open_embedder(self._bundle, self._backend)

    def embed(self, part: UndonePart, parts: PartFiles | None) -> EmbeddedPart | dict[int, str]:
        """Embed one part, and write it if ``parts`` are given: then what is left to tell is `EmbeddedPart.bad`."""
        made = embed_part(self._embedder, [self._found(item) for item in part.items], part.first, self._options)
        if parts is None:
            return made
        parts.write(part.number, part.items, made.vectors, made.bad)
        return made.bad

    def _found(self, item: Item) -> Item:
        is_path = self._kind != "text" and isinstance(item.value, str | Path) and not is_stored(item, self._kind)
        return item._replace(value=os.path.join(self._folder, item.value)) if is_path else item
