"""Settings of a server."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from fluxtalk.errors import UsageError
from fluxtalk.runtime.backends.choose import BackendChoice
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.runtime.server.http.memory import BODIES_IN_BUDGET, default_budget
from fluxtalk.runtime.server.http.url_names import host_name
from fluxtalk.runtime.server.log_config import LOG_FORMATS

MAX_ITEMS = 2048
"""Items of one request, as OpenAI's service has it; fewer if the queue is shorter."""


@dataclass(frozen=True)
class ServerSettings:
    """Options of `fluxtalk serve`."""

    bundle: Path
    backend: BackendOptions = field(default_factory=lambda: BackendOptions(spinning=False))
    """Library that runs the graphs. Without ``threads``, an operator takes the available cores over the workers."""
    modalities: tuple[str, ...] = ()
    """Modalities that are loaded, verified and served; none: all of the bundle."""
    max_batch_items: int | None = None
    """Items of ordinary size in one run of a graph; None takes 8 on a CPU and 64 on a GPU."""
    queue: int = 4096
    """Items of one modality that may wait or run, before more are refused."""
    max_body_bytes: int = 32 << 20
    memory_bytes: int | None = None
    """Bytes of one process that requests may hold, in every form; None: see `default_budget`."""
    timeout_s: float = 30.0
    """Seconds that a request may take, its body included."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Keys, each of which opens every route; none: no key is asked for."""
    allow_hosts: tuple[str, ...] = ()
    """Names of this server, without a port, that the Host header of a request may have; none: any."""
    allow_urls: tuple[str, ...] = ()
    """Hosts from which images and sounds may be fetched; none: a URL is refused."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call this server (``https://app.example``); ``*`` is any, none: its own page."""
    root_path: str = ""
    """Prefix under which a proxy shows this server (``/embeddings``)."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    served_model_names: tuple[str, ...] = ()
    """Names under which clients may ask for the model, of which answers have the first; none: its folder's name."""
    accept_token_ids: bool = False
    """True to take texts as lists of token ids of the bundle's own tokenizer."""
    log_format: str = "text"
    """Form of a line of the log, one of `LOG_FORMATS`."""
    otlp_endpoint: str | None = None
    """Address of an OpenTelemetry collector to which traces are sent (``http://collector:4318``); None: none are."""
    workers: int = 1
    """Processes that share the port."""
    indexes: tuple[Path, ...] = ()
    """Folders of search indexes, each of which names its index."""
    serve_items: tuple[Path, ...] = ()
    """Folders of which, and of all below, small pictures of the image files are given out that the indexes list."""
    choice: BackendChoice | None = None
    """Backends that a worker must open, so that all serve with the same; None: this process chooses."""
    revision: str | None = None
    """Hash of the bundle that a worker must find, so that all serve the same; None: any."""

    def __post_init__(self) -> None:
        if not isinstance(self.backend, BackendOptions):
            raise UsageError(
                "backend must be a BackendOptions, such as BackendOptions('ort-cpu', threads=2); got "
                f"{type(self.backend).__name__}."
            )
        for name in ("max_batch_items", "queue", "max_body_bytes", "memory_bytes", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}.")
        if self.memory < BODIES_IN_BUDGET * self.max_body_bytes:
            raise UsageError(
                f"memory_bytes must be at least {BODIES_IN_BUDGET} times max_body_bytes, since a body is held in "
                f"several forms; got {self.memory:,} and {self.max_body_bytes:,}."
            )
        for name in self.served_model_names:
            if not name.strip() or not name.isprintable():
                raise UsageError(f"A served model's name is a visible text, such as icons/base; got {name!r}.")
        for host in self.allow_urls:
            host_name(host)
        if self.log_format not in LOG_FORMATS:
            raise UsageError(f"log_format is {' or '.join(LOG_FORMATS)}; got {self.log_format!r}.")
        if self.otlp_endpoint is not None and not re.fullmatch(r"https?://[^\s?#]+", self.otlp_endpoint):
            raise UsageError(f"otlp_endpoint is an address such as http://localhost:4318; got {self.otlp_endpoint!r}.")
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s?#]+", origin):
                raise UsageError(
                    f"An origin is a scheme and a host, such as https://app.example, or *; got {origin!r}."
                )
        if self.root_path and not re.fullmatch(r"(/[^/\s?#]+)+", self.root_path):
            raise UsageError(
                f"root_path begins with a slash and ends without one, such as /api; got {self.root_path!r}."
            )
        for proxy in self.trusted_proxies:
            _require_address(proxy)
        if not 0 < self.timeout_s < float("inf"):
            raise UsageError(f"timeout_s must be a positive number of seconds; got {self.timeout_s}.")

    @functools.cached_property
    def memory(self) -> int:
        """Bytes of one process that requests may hold."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        return default_budget(self.max_body_bytes, self.workers)

    @property
    def backend_of_worker(self) -> BackendOptions:
        """Options of one of the workers, which share the cores."""
        if self.backend.threads is not None or self.workers == 1:
            return self.backend
        return dataclasses.replace(self.backend, threads=max(1, available_cores() // self.workers))

    @property
    def max_items(self) -> int:
        """Items of one request, which may fill half of the queue."""
        return max(1, min(MAX_ITEMS, self.queue // 2))


def _require_address(proxy: str) -> None:
    try:
        ipaddress.ip_address(proxy)
    except ValueError:
        raise UsageError(f"A proxy is named by its address, such as 10.0.0.1; got {proxy!r}.") from None
