"""Processes of a server: one, or several that share a port."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE

from fluxtalk.artifacts.bundle import read_bundle
from fluxtalk.errors import BackendError, ParityError, UsageError
from fluxtalk.runtime.arguments import check_modalities
from fluxtalk.runtime.backends.choose import choose
from fluxtalk.runtime.backends.open_sessions import decide
from fluxtalk.runtime.doctor.trial import in_subprocess
from fluxtalk.runtime.server.app import AppFactory, build_app
from fluxtalk.runtime.server.execution.decoding import ignore_pillow_warnings
from fluxtalk.runtime.server.http.places import accepted_at_a_time
from fluxtalk.runtime.server.http.protocol import DeadlineProtocol
from fluxtalk.runtime.server.later_verification import BROKEN_PROMISE
from fluxtalk.runtime.server.log_config import log_config
from fluxtalk.runtime.server.metrics import SHARED_FOLDER
from fluxtalk.runtime.server.service import Service, drain_seconds
from fluxtalk.runtime.server.settings import ServerSettings
from fluxtalk.runtime.server.supervisor import Supervisor

_IDLE_S = 75
"""Seconds that an idle connection is kept: longer than clients and balancers keep theirs, so that they close it."""
_WORKER_SILENCE_S = 30
"""Seconds without an answer to its supervisor after which a worker is replaced."""


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket; port 0 takes a free one.

    Raises:
        UsageError: the address is not of this machine, or taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"The server cannot listen on {host}: {error}; give an address of this machine.") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"The server cannot listen on {host}:{port}: {error.strerror}; give another --host or --port."
        ) from None
    bound.set_inheritable(True)
    return bound


def uvicorn_config(settings: ServerSettings, app: Any, factory: bool = False) -> Config:
    """Make the settings with which uvicorn runs the application."""
    return Config(
        app,
        factory=factory,
        # uvloop saves nothing here, and accepts one connection per turn: a flood of new ones is lost in the kernel.
        loop="asyncio",
        http=DeadlineProtocol,
        ws="none",
        lifespan="on",
        workers=settings.workers,
        log_config=log_config(settings.log_format),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=accepted_at_a_time(),
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=drain_seconds(settings),
        timeout_worker_healthcheck=_WORKER_SILENCE_S,
    )


def run_server(settings: ServerSettings, listening: socket.socket) -> None:
    """Serve until a signal ends it.

    Args:
        listening: a socket made by `bind`.

    Raises:
        FluxTalkError: the bundle cannot be loaded, or does not pass its verification.
    """
    _allow_connections()
    ignore_pillow_warnings()
    if settings.workers > 1:
        _run_workers(settings, listening)
        return

    def end() -> None:
        server.should_exit = True

    service = Service(settings, end)
    server = Server(uvicorn_config(settings, build_app(service)))
    # uvicorn raises the signal again when everything is done; having been asked to end is not a failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    server.run([listening])
    if service.failure is not None:
        raise service.failure


def _allow_connections() -> None:
    """Allow as many open files as this process may have: a connection beyond them is closed without an answer."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run_workers(settings: ServerSettings, listening: socket.socket) -> None:
    """Let uvicorn supervise the workers; one that dies is replaced.

    Raises:
        BackendError: a worker could not start; its message is above.
        ParityError: a worker found a broken promise while it served; its message is above.
    """
    bundle = read_bundle(settings.bundle)
    modalities = check_modalities(settings.modalities or None, bundle.manifest.modalities)
    options = settings.backend_of_worker
    choice = choose(bundle, options, modalities)
    if choice.unmeasured:  # in a process of its own, whose memory is given back
        choice = in_subprocess(decide, settings.bundle, modalities, options)
    # A worker that starts later must not find another bundle, or choose other backends.
    settings = dataclasses.replace(settings, revision=bundle.manifest.bundle_hash, choice=choice)
    with tempfile.TemporaryDirectory(prefix="fluxtalk-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder
        supervisor = Supervisor(uvicorn_config(settings, AppFactory(settings), factory=True), [listening], Path(folder))
        supervisor.run()
        codes = [process.exitcode for process in supervisor.processes]
    if BROKEN_PROMISE in codes:
        raise ParityError("The bundle does not keep what it promises; a worker's message is above.")
    if STARTUP_FAILURE in codes:
        raise BackendError("A worker could not start; its message is above.")
