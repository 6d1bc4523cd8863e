"""What a server says about itself, and to whom."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from fluxtalk.errors import UsageError
from fluxtalk.runtime.server.cli import serve
from fluxtalk.runtime.server.service import Service
from fluxtalk.runtime.server.settings import ServerSettings
from tests.conftest import Made
from tests.runtime.server.conftest import Process, in_thread, running, start


def values(client: httpx.Client) -> dict[str, float]:
    """Every sample of `/metrics` by name and labels."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"alive": True}
    assert client.get("/readyz").json() == {"ready": True}


def test_info_names_all_that_a_client_can_choose(client: httpx.Client, made: Made) -> None:
    info = client.get("/info").json()
    assert info["revision"] == made.bundle.manifest.bundle_hash
    assert (info["num_register_tokens"], info["num_overlapping_tokens"], info["dimension"]) == (4, 3, 48)
    assert {name: entry["kind"] for name, entry in info["modalities"].items()} == {"image": "image", "text": "text"}
    assert set(info["outputs"]) == {"pooled", "concat", "tokens", "complementary"}
    assert info["limits"]["body_bytes"] == 1 << 20
    assert str(made.bundle.folder) not in client.get("/info").text


def test_metrics_count_what_happened(client: httpx.Client) -> None:
    before = values(client)
    for body, status in (({"input": ["a", "b", "c"]}, 200), ({"input": ""}, 422), ({}, 400)):
        assert client.post("/v1/embeddings", json=body).status_code == status
    client.get("/nowhere/at/all")
    after = values(client)

    def more(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    for status in (200, 422, 400):
        assert more(f"fluxtalk_requests_total{{route=/v1/embeddings,status={status}}}") == 1
    assert more("fluxtalk_requests_total{route=other,status=404}") == 1
    assert more("fluxtalk_request_seconds_count{route=/v1/embeddings}") == 3
    assert more("fluxtalk_batch_items_sum{modality=text}") == 3
    assert more("fluxtalk_queue_wait_seconds_count{modality=text}") == 3
    assert more("fluxtalk_padding_ratio_count{modality=text}") >= 1
    for stage in ("read", "prepare", "run", "answer"):
        assert more(f"fluxtalk_stage_seconds_count{{stage={stage}}}") >= 1
    assert after["fluxtalk_outstanding_items{modality=text}"] == 0
    assert after["fluxtalk_ready{}"] == 1


def test_not_ready_before_the_bundle_is_verified(made: Made) -> None:
    service = Service(ServerSettings(made.bundle.folder), lambda: None)
    assert service.why_not_ready == "the bundle is being loaded and verified"


def test_a_dead_engine_thread_ends_readiness(made: Made) -> None:
    with in_thread(made.bundle) as up, up.client() as client:
        assert client.get("/readyz").status_code == 200

        def die(_inputs: object) -> None:
            raise SystemExit

        up.sessions["text"].before = die
        failed = up.embed(client, "a")
        assert failed.status_code == 503
        assert failed.json()["error"]["code"] == "engine_stopped"
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert "the engine of text stopped" in answer.json()["error"]["message"]
        assert client.get("/livez").status_code == 200
        assert values(client)["fluxtalk_ready{}"] == 0


def test_a_key_opens_everything_but_health(made: Made, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n\nzweiter-schlüssel\n", encoding="utf-8")
    with running(made.bundle.folder, tmp_path / "log", "--api_key_file", keys) as up, up.client() as client:
        for path in ("/livez", "/readyz"):
            assert client.get(path).status_code == 200
        for path in ("/metrics", "/info", "/v1/models", "/v1/embeddings", "/nowhere"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first-key"}):
                refused = client.get(path, headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 401
        for key in ("first-key", "zweiter-schlüssel"):
            bearer = httpx.Headers({"authorization": f"Bearer {key}"}, encoding="utf-8")
            assert client.post("/v1/embeddings", json={"input": "a"}, headers=bearer).status_code == 200
        assert "schlüssel" not in up.log.read_text()


@pytest.mark.parametrize("content", ["schlüssel\n".encode("latin-1"), b"\x00\xff\xfe\x80", b" \n"])
def test_a_file_that_holds_no_keys_is_an_error_in_one_sentence(made: Made, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    done = CliRunner().invoke(serve, [str(made.bundle.folder), "--api_key_file", str(tmp_path / "keys")])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: The file {tmp_path / 'keys'} of --api-key-file ")
    assert done.stderr.endswith("one key per line.\n" if content.strip() else "one per line.\n")


def test_a_deadline_before_any_body_could_be_here_is_not_the_bodys_fault(server: Process) -> None:
    body = b'{"input": "a"}'
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-Timeout: 1e-9\r\n\r\n"
    )
    host, port = server.url.removeprefix("http://").split(":")
    for pieces in ([head.encode() + body], [head.encode(), body]):
        with socket.create_connection((host, int(port)), 20) as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.02)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 504"), pieces


def test_a_foreign_host_name_is_refused(server: Process, client: httpx.Client) -> None:
    port = server.url.rpartition(":")[2]
    for host in (f"evil.example:{port}", "evil.example", "localhost.evil.example", "[::2]:80", "evil.example:", ":80"):
        refused = client.post("/v1/embeddings", json={"input": "a"}, headers={"host": host})
        assert refused.status_code == 421, host
        assert refused.json()["error"]["code"] == "host_not_allowed"
        assert client.get("/livez", headers={"host": host}).status_code == 200
    for host in (f"LOCALHOST:{port}", "localhost", f"127.0.0.1:{port}", f"[::1]:{port}", "[::1]"):
        assert client.get("/info", headers={"host": host}).status_code == 200, host


def test_host_names_that_are_allowed(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", "--allow_host", "Search.example") as up, up.client() as client:
        for host, status in (("search.example", 200), ("localhost:1", 200), ("other.example", 421)):
            assert client.get("/info", headers={"host": host}).status_code == status, host


def test_a_key_opens_the_server_by_any_name(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", FLUXTALK_API_KEY="secret") as up, up.client() as client:
        headers = {"host": "any.example", "authorization": "Bearer secret"}
        assert client.get("/info", headers=headers).status_code == 200


def test_a_key_of_the_environment(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", FLUXTALK_API_KEY="secret") as up, up.client() as client:
        assert client.get("/info").status_code == 401
        assert client.get("/info", headers={"authorization": "Bearer secret"}).status_code == 200


def test_a_bundle_that_cannot_be_served_ends_the_server_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    started = start(tmp_path / "empty", tmp_path / "log")
    assert started.process.wait(60) == 1
    assert started.log.read_text().startswith("error: ")
    assert "is not a bundle" in started.log.read_text()
    assert "Traceback" not in started.log.read_text()
    assert started.process.stdout is not None
    started.process.stdout.close()


def test_a_taken_port_is_an_error_in_one_sentence(server: Process, made: Made, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(AssertionError, match="cannot listen"):
        start(made.bundle.folder, tmp_path / "log", "--port", port)


def test_workers_share_the_port_and_their_metrics(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", "--workers", 2) as up:
        end = time.monotonic() + 60
        ready = 0.0
        while ready < 2 and time.monotonic() < end:
            with up.client() as client:
                ready = values(client).get("fluxtalk_ready{}", 0) if client.get("/readyz").status_code == 200 else 0
            time.sleep(0.1)
        assert ready == 2, up.log.read_text()
        for _ in range(20):
            with up.client() as client:
                assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        with up.client() as client:
            assert values(client)["fluxtalk_requests_total{route=/v1/embeddings,status=200}"] == 20
        assert up.end() == 0


def test_settings_take_backend_options_and_say_so() -> None:
    with pytest.raises(UsageError, match=r"backend must be a BackendOptions, .* got str\."):
        ServerSettings(Path("bundle"), backend="ort-cpu")  # type: ignore[arg-type]
