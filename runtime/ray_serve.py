"""Bundles on Ray Serve: replicas on one machine or many, called over HTTP or by handle.

::

    from pathlib import Path

    from ray import serve

    from fluxtalk.runtime.ray_serve import BundleReplica
    from fluxtalk.runtime.server.settings import ServerSettings

    replicas = BundleReplica.options(num_replicas=4, ray_actor_options={"num_cpus": 2})
    handle = serve.run(replicas.bind(ServerSettings(Path("bundle"))))
    vectors = handle.embed.remote("text", ["black chess queen"], k=1).result()

Every replica checks the bundle's hashes and replays its golden vectors before Ray sends it anything, and answers the
routes of `fluxtalk serve`. Requests by handle and over HTTP share batches. The folder must be there on every machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.errors import BackendError, FluxTalkError, InputError, TooLargeError, UsageError
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.server.app import build_app
from fluxtalk.runtime.server.execution.requests import EmbedRequest, Item
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.service import Service, open_verified
from fluxtalk.runtime.server.settings import ServerSettings

try:
    import ray
    from ray import serve
except ImportError:
    raise BackendError("Ray Serve is not installed; pip install 'fluxtalk[ray]'.") from None

# Ray sends a replica 5 requests at a time unless told otherwise, of which no batch can be made.
_REQUESTS_AT_A_TIME = 512
_GRACE_S = 35.0
"""Seconds to finish what was accepted: the longest that a request may take, and a little."""


class Replica:
    """Loaded bundle, as `BundleReplica` deploys it.

    Args:
        settings: settings of the server. Without ``threads``, an operator takes the CPUs that Ray gave to the replica.

    Raises:
        FluxTalkError: the bundle cannot be loaded or does not pass its verification; Ray reports the deployment as
            failed with this sentence.
    """

    def __init__(self, settings: ServerSettings) -> None:
        if settings.workers != 1:
            raise UsageError(f"Ray starts the replicas (num_replicas); workers is 1, and got {settings.workers}.")
        if settings.backend.threads is None:
            cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
            backend = dataclasses.replace(settings.backend, threads=max(1, int(cpus)))
            settings = dataclasses.replace(settings, backend=backend)
        self._settings = settings
        self._embedder = open_verified(settings)
        self._service = Service(settings, lambda: None, self._opened)

    def __serve_build_asgi_app__(self) -> Any:
        """Make the application of `fluxtalk serve`, which is not up before its bundle is warm. Called by Ray."""
        app = build_app(self._service)
        started = app.router.lifespan_context

        @contextlib.asynccontextmanager
        async def until_ready(of: Any) -> AsyncIterator[Any]:
            async with started(of) as state:
                while self._service.dispatcher is None and self._service.failure is None:
                    await asyncio.sleep(0.01)
                if self._service.failure is not None:
                    raise self._service.failure
                yield state

        app.router.lifespan_context = until_ready
        return app

    async def embed(
        self,
        modality: str,
        items: Sequence[Any],
        k: int | None = None,
        output: str = "pooled",
        role: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
    ) -> NDArray[np.float32]:
        """Embed raw items, for `DeploymentHandle`.

        Args:
            modality: one of the bundle's.
            items: strings or lists of token ids; bytes of image or sound files, or arrays; feature arrays. A path is
                never opened.
            k: register tokens, from the first; None takes all.
            output, role, prompt_name, dimensions: as for `Embedder.embed`.

        Returns:
            float32, in the order of ``items``, shaped as `Embedder.embed` has it.

        Raises:
            UsageError: the modality, k or output is unknown, or there are too many items.
            InputError: an item cannot be used; its position is named.
            BackendError: there is no room, the time is over, or the engine failed.
        """
        try:
            dispatcher = self._service.require_dispatcher()
            model = dispatcher.model
            name = model.require_modality(modality)
            model.require_count(len(items))
            given = [Item(name, value) for value in items]
            selection = model.select(k, output, dimensions=dimensions)
            request = EmbedRequest(given, selection, model.prompting(given, role, prompt_name))
            return (await dispatcher.embed(request, time.monotonic() + self._settings.timeout_s)).vectors
        except ApiError as error:
            raise _library_error(error) from None

    def check_health(self) -> None:
        """Report to Ray, which replaces a replica whose sessions stopped.

        Raises:
            BackendError: it did.
        """
        dispatcher = self._service.dispatcher
        if dispatcher is not None and dispatcher.why_not_alive is not None:
            raise BackendError(f"This replica must be replaced: {dispatcher.why_not_alive}.")

    def _opened(self, _settings: ServerSettings) -> Embedder:
        return self._embedder


BundleReplica = serve.deployment(
    name="fluxtalk", max_ongoing_requests=_REQUESTS_AT_A_TIME, graceful_shutdown_timeout_s=_GRACE_S
)(serve.ingress()(Replica))
"""The deployment: `options` changes what Ray decides (replicas, resources, autoscaling), `bind` takes the settings."""


def _library_error(error: ApiError) -> FluxTalkError:
    """Convert what an HTTP client gets as a status to the exception that a program knows."""
    kinds: dict[int, type[FluxTalkError]] = {400: UsageError, 413: TooLargeError, 422: InputError}
    return kinds.get(error.status, BackendError)(error.message)
