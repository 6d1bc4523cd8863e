"""`fluxtalk serve`: a bundle over HTTP."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from pathlib import Path

import click

from fluxtalk.console import debug_option, from_environment, option, sentence_errors
from fluxtalk.errors import UsageError
from fluxtalk.runtime.backends.command_options import backend_option, host_code_option, precision_option
from fluxtalk.runtime.backends.options import BackendOptions

API_KEY_VARIABLE = "FLUXTALK_API_KEY"
_MIB = 1 << 20


@click.command(name="serve")
@click.argument("bundle", type=click.Path(path_type=Path))
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@option(
    "--modality",
    "modalities",
    metavar="NAME",
    multiple=True,
    help="Load and serve this modality alone; repeat for several.  [default: all of the bundle]",
)
@backend_option
@precision_option
@option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of one operator.  [default: the available cores, over the workers]",
)
@option("--dedicated", is_flag=True, help="The cores are the server's alone: threads spin while they wait.")
@host_code_option
@option(
    "--max_batch_items",
    type=click.IntRange(1),
    help="Items of ordinary size (256 text tokens, 224 x 224 pixels) in a batch.  [default: 8 on a CPU, 64 on a GPU]",
)
@option("--queue", default=4096, show_default=True, type=click.IntRange(1), help="Items of a modality before 429.")
@option("--max_body", default=32, show_default=True, type=click.IntRange(1), help="Mebibytes of a body.")
@option(
    "--memory",
    type=click.IntRange(1),
    help="Mebibytes of a process that requests may hold: bodies, what is made of them, answers.  [default: a quarter "
    "of what there is, at most 512]",
)
@option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds that a request may take; it may ask for fewer with X-Request-Timeout.",
)
@option(
    "--api_key_file",
    type=click.Path(path_type=Path),
    help=f"A file with one key per line; any opens every route.  [default: {API_KEY_VARIABLE}, else no key]",
)
@option(
    "--allow_host",
    metavar="NAME",
    multiple=True,
    help="Answer requests to this host name, beside localhost; repeatable.  [default: any name if a key is asked for "
    "or other machines reach the address, else localhost alone]",
)
@option("--index", "indexes", multiple=True, type=click.Path(path_type=Path), help="An index to search; repeatable.")
@option(
    "--serve_items",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Give out small pictures of the image files that the indexes list, if they are in this folder or below it; "
    "repeatable.  [default: none is given out]",
)
@option(
    "--allow_url",
    metavar="HOST",
    multiple=True,
    help="Fetch images and sounds from https URLs of this host; repeatable.  [default: URLs are refused]",
)
@option(
    "--cors_origin",
    metavar="ORIGIN",
    multiple=True,
    help="Let web pages of this origin (https://app.example, or * for any) call the server; repeatable.",
)
@option("--root_path", default="", metavar="PREFIX", help="Prefix under which a proxy shows the server, such as /api.")
@option(
    "--trust_proxy",
    metavar="ADDRESS",
    multiple=True,
    help="Believe X-Forwarded-For and X-Forwarded-Proto of the proxy at this address; repeatable.",
)
@option(
    "--accept-token-ids",
    is_flag=True,
    help="Take texts as lists of token ids, from clients that have the bundle's own tokenizer.",
)
@option(
    "--served-model-name",
    "served_model_names",
    metavar="NAME",
    multiple=True,
    help="Name under which clients ask for the model; repeatable, and answers have the first.  "
    "[default: that of the bundle's folder]",
)
@option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines of the log, on standard error.",
)
@option(
    "--otlp-endpoint",
    metavar="URL",
    help="Send a trace of every request to the OpenTelemetry collector at this address (http://localhost:4318).  "
    "[default: none is sent]",
)
@option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes that share the port.")
@debug_option
@sentence_errors
def serve(
    bundle: Path,
    host: str,
    port: int,
    modalities: tuple[str, ...],
    backend: str,
    precision: str | None,
    threads: int | None,
    dedicated: bool,
    allow_host_code: bool,
    max_batch_items: int | None,
    queue: int,
    max_body: int,
    memory: int | None,
    timeout: float,
    api_key_file: Path | None,
    allow_host: tuple[str, ...],
    allow_url: tuple[str, ...],
    indexes: tuple[Path, ...],
    serve_items: tuple[Path, ...],
    cors_origin: tuple[str, ...],
    root_path: str,
    trust_proxy: tuple[str, ...],
    accept_token_ids: bool,
    served_model_names: tuple[str, ...],
    log_format: str,
    otlp_endpoint: str | None,
    workers: int,
) -> None:
    """Serve BUNDLE: OpenAI's /v1/embeddings, a page at /, /v1/search, /info, /livez, /readyz, /metrics.

    fluxtalk serve BUNDLE --port 8000 --index photos.index
    """
    try:
        from fluxtalk.runtime.server.run import bind, run_server
    except ImportError as error:
        raise UsageError(f"The server needs {error.name}; pip install 'fluxtalk[serve]'.") from None
    from fluxtalk.runtime.server.http.middleware import LOOPBACK_NAMES
    from fluxtalk.runtime.server.settings import ServerSettings

    settings = ServerSettings(
        bundle=bundle,
        backend=BackendOptions(backend, precision, threads, spinning=dedicated, allow_host_code=allow_host_code),
        modalities=tuple(dict.fromkeys(modalities)),
        max_batch_items=max_batch_items,
        queue=queue,
        max_body_bytes=max_body * _MIB,
        memory_bytes=None if memory is None else memory * _MIB,
        timeout_s=timeout,
        api_keys=_api_keys(api_key_file),
        allow_hosts=allow_host,
        allow_urls=allow_url,
        cors_origins=cors_origin,
        root_path=root_path,
        trusted_proxies=trust_proxy,
        accept_token_ids=accept_token_ids,
        served_model_names=tuple(dict.fromkeys(served_model_names)),
        log_format=log_format,
        otlp_endpoint=otlp_endpoint,
        workers=workers,
        indexes=indexes,
        serve_items=serve_items,
    )
    listening = bind(host, port)
    address = listening.getsockname()[0]
    shown = f"[{address}]" if ":" in address else address
    is_private = ipaddress.ip_address(address).is_loopback
    if allow_host or (is_private and not settings.api_keys):
        settings = dataclasses.replace(settings, allow_hosts=(*LOOPBACK_NAMES, shown, *allow_host))
    click.echo(f"serving {bundle} on http://{shown}:{listening.getsockname()[1]}")
    if not settings.api_keys and not is_private:
        click.echo(
            "warning: other machines may reach this address, and no key is asked for (--api-key-file).", err=True
        )
    run_server(settings, listening)


def _api_keys(file: Path | None) -> tuple[str, ...]:
    """Read the keys of a file, or the one of the environment."""
    if file is None:
        key = os.environ.get(API_KEY_VARIABLE, "").strip()
        return (key,) if key else ()
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"The file {file} of --api-key-file is not text in UTF-8; write one key per line.") from None
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise UsageError(f"The file {file} of --api-key-file has no key; write one per line.")
    return keys


# For containers: FLUXTALK_PORT=80 is --port 80.
from_environment(serve, "FLUXTALK")
