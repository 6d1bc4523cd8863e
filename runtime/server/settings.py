"""Settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fluxtalk.errors import UsageError
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.server.http.fetch import host_name

MAX_ITEMS = 2048
"""Items of one request, as OpenAI's service has it; fewer if the queue is shorter."""


@dataclass(frozen=True)
class ServerSettings:
    """Options of `fluxtalk serve`."""

    bundle: Path
    backend: BackendOptions = field(default_factory=lambda: BackendOptions(spinning=False))
    """Library that runs the graphs. Without ``threads``, an operator takes the available cores over the workers."""
    max_batch_items: int | None = None
    """Items of ordinary size in one run of a graph; None takes 8 on a CPU and 64 on a GPU."""
    queue: int = 4096
    """Items of one modality that may wait or run, before more are refused."""
    max_body_bytes: int = 32 << 20
    timeout_s: float = 30.0
    """Seconds that a request may take, its body included."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Keys, each of which opens every route; none: no key is asked for."""
    allow_hosts: tuple[str, ...] = ()
    """Names of this server, without a port, that the Host header of a request may have; none: any."""
    allow_urls: tuple[str, ...] = ()
    """Hosts from which images and sounds may be fetched; none: a URL is refused."""
    accept_token_ids: bool = False
    """True to take texts as lists of token ids of the bundle's own tokenizer."""
    workers: int = 1
    """Processes that share the port."""
    indexes: tuple[Path, ...] = ()
    """Folders of search indexes, each of which names its index."""
    serve_items: bool = False
    """True to give out small pictures of the image files that the indexes list."""
    revision: str | None = None
    """Hash of the bundle that a worker must find, so that all serve the same; None: any."""

    def __post_init__(self) -> None:
        if not isinstance(self.backend, BackendOptions):
            raise UsageError(
                "backend must be a BackendOptions, such as BackendOptions('ort-cpu', threads=2); got "
                f"{type(self.backend).__name__}."
            )
        for name in ("max_batch_items", "queue", "max_body_bytes", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}.")
        for host in self.allow_urls:
            host_name(host)
        if not 0 < self.timeout_s < float("inf"):
            raise UsageError(f"timeout_s must be a positive number of seconds; got {self.timeout_s}.")

    @property
    def max_items(self) -> int:
        """Items of one request, which may fill half of the queue."""
        return max(1, min(MAX_ITEMS, self.queue // 2))
