"""What operators watch: traces at an OpenTelemetry collector, and the log as JSON."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.conftest import Made
from tests.runtime.server.conftest import in_thread, running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A collector on loopback, which keeps what it is sent."""
    received: list[ExportTraceServiceRequest] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collect) as up:
        thread = threading.Thread(target=up.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{up.server_port}", received
        up.shutdown()
        thread.join()


def spans(received: list[ExportTraceServiceRequest]) -> list[Span]:
    return [span for sent in received for of in sent.resource_spans for scope in of.scope_spans for span in scope.spans]


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_child_of_the_callers_span_and_its_stages_are_children_of_it(made: Made) -> None:
    with collector() as (url, received):
        with in_thread(made.bundle, otlp_endpoint=url) as up, up.client() as client:
            traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert client.post("/v1/embeddings", json={"input": "omega"}, headers=traced).status_code == 200
            assert client.post("/v1/embeddings", json={"input": "\x00secret\x00" * 2}, headers=traced).status_code
            assert client.post("/v1/embeddings", json={"input": "   ", "user": "secret"}).status_code == 422
            assert client.get("/secret").status_code == 404
        resource = {a.key: a.value.string_value for a in received[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "fluxtalk"
    found = [span for span in spans(received) if span.trace_id.hex() == TRACE]
    request = next(span for span in found if span.name == "POST /v1/embeddings")
    assert request.parent_span_id.hex() == PARENT
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
    }
    stages = [span.name for span in found if span.parent_span_id == request.span_id]
    assert stages == ["read", "prepare", "embed", "answer"]
    refused = next(span for span in spans(received) if attributes(span).get("http.response.status_code") == 422)
    assert refused.trace_id.hex() != TRACE
    assert not refused.parent_span_id
    assert any(span.name == "GET other" for span in spans(received))
    assert not any(b"secret" in sent.SerializeToString() for sent in received)


def test_untraced_servers_load_nothing_of_opentelemetry() -> None:
    code = (
        "import sys, fluxtalk.runtime.server.app, fluxtalk.runtime.server.run; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_log_is_json_and_names_the_trace(made: Made, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(made.bundle.folder, log, "--log-format", "json") as up, up.client() as client:
        client.get("/info")
        up.end()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ready = next(line for line in lines if line["message"].startswith("ready: "))
    assert ready["level"] == "INFO"
    assert ready["logger"] == "fluxtalk.server"
    assert ready["time"].endswith("+00:00")
    assert ready["process"] == up.process.pid
    assert "trace_id" not in ready


def test_a_traced_failure_is_an_error_of_its_span(made: Made) -> None:
    with collector() as (url, received), in_thread(made.bundle, otlp_endpoint=url) as up, up.client() as client:

        def fail(_inputs: object) -> None:
            raise RuntimeError("secret")

        for session in up.sessions.values():
            session.before = fail
        traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert client.post("/v1/embeddings", json={"input": "omega"}, headers=traced).status_code >= 500
        assert client.get("/v1/models/x", headers=traced).status_code == 404
        up.service.draining = True
    found = {attributes(span).get("http.response.status_code", 0): span.status.code for span in spans(received)}
    assert found[404] == 0
    assert all(code == 2 for status, code in found.items() if status >= 500)
    assert max(found) >= 500


def test_a_collector_that_does_not_answer_is_one_line_and_harms_no_request(made: Made, tmp_path: Path) -> None:
    options = ("--log-format", "json", "--otlp-endpoint", "http://127.0.0.1:1")
    with running(made.bundle.folder, tmp_path / "log", *options) as up, up.client() as client:
        assert client.post("/v1/embeddings", json={"input": "omega"}).status_code == 200
        assert up.end() == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any(line["logger"].startswith("opentelemetry") for line in lines)
    assert not any("exception" in line or "Traceback" in line["message"] for line in lines)
