"""Functions and files that one text request over HTTP enters, counted by `sys.setprofile` on every thread.

In: a bundle, served in this process. Out: the number of distinct functions and files of FluxTalk between the socket
and the answer: what a reader has to open to follow one request.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import click

from fluxtalk import cli
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import BackendError

_PATIENCE_S = 60.0
_WARM_UP = 20
_COUNTED = 10
_BODY = json.dumps({"input": "black chess queen"})


class CallRecorder:
    """Records which functions of a package are entered, by any thread that starts after `install`.

    Comprehensions count if Python runs them as functions (3.11 does); lambdas do not.
    """

    def __init__(self, package: str) -> None:
        self._prefix = package + "."
        self._entered: set[tuple[str, str]] | None = None

    def install(self) -> None:
        """Watch this thread, and every thread that starts from now on."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def uninstall(self) -> None:
        """Watch no new thread, nor this one."""
        threading.setprofile(None)
        sys.setprofile(None)

    def start(self) -> None:
        """Begin an empty record."""
        self._entered = set()

    def stop(self) -> set[tuple[str, str]]:
        """End the record; module and qualified name of each function that was entered."""
        entered, self._entered = self._entered, None
        return entered or set()

    def _profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        entered = self._entered
        if entered is None or event != "call" or frame.f_code.co_name == "<lambda>":
            return
        module = frame.f_globals.get("__name__", "")
        if module.startswith(self._prefix):
            entered.add((module, frame.f_code.co_qualname))


@click.command()
@option("--bundle", required=True, type=click.Path(path_type=Path), help="A bundle with texts, such as the demo's.")
@option("--list", "listed", is_flag=True, help="Print every function.")
@option("-o", "--output", type=click.Path(path_type=Path), help="A .json to write.")
@debug_option
@sentence_errors
def main(bundle: Path, listed: bool, output: Path | None) -> None:
    """Serve BUNDLE, send one text after another, and print what each request enters."""
    entered = functions_of_a_request(bundle)
    modules = sorted({module for module, _ in entered})
    if listed:
        for module, name in sorted(entered):
            click.echo(f"{module}  {name}")
    click.echo(f"one text request enters {len(entered)} functions in {len(modules)} files")
    if output is not None:
        figures = {"functions": len(entered), "files": len(modules), "modules": modules}
        made = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "git_revision": git_revision()}
        write_json(output, {**made, **figures})


def functions_of_a_request(bundle: Path) -> set[tuple[str, str]]:
    """Module and qualified name of each function that every one of several equal requests enters.

    The server runs on this thread, because it takes signals; the client runs on another.

    Raises:
        BackendError: the server does not answer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    recorder = CallRecorder("fluxtalk")
    records: list[set[tuple[str, str]]] = []

    def ask() -> None:
        try:
            records.extend(_records(recorder, port))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    recorder.install()
    client = threading.Thread(target=ask)
    client.start()
    try:
        cli.main(["serve", str(bundle), "--port", str(port)], standalone_mode=False)
    finally:
        recorder.uninstall()
        client.join()
    if not records:
        raise BackendError("The server did not answer; its own message is above.")
    # What runs beside requests (verification, timers) is not entered in each.
    return set.intersection(*records)


def _records(recorder: CallRecorder, port: int) -> list[set[tuple[str, str]]]:
    """Wait for the server, warm it up, and record one request after another."""
    _wait_until_ready(port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    records = []
    for number in range(_WARM_UP + _COUNTED):
        recorder.start()
        connection.request("POST", "/v1/embeddings", _BODY, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        time.sleep(0.05)  # what is counted after the answer belongs to the request, too
        entered = recorder.stop()
        if answer.status != 200:
            raise BackendError(f"The server answered {answer.status}: {content.decode()}")
        if number >= _WARM_UP:
            records.append(entered)
    connection.close()
    return records


def _wait_until_ready(port: int) -> None:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise BackendError(f"The server was not ready within {_PATIENCE_S:.0f} s.")


if __name__ == "__main__":
    main()
