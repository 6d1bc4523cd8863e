"""A real S3 for tests: moto's server on this machine, reached through s3fs as any other by its endpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from werkzeug.serving import make_server


@contextmanager
def local_s3() -> Iterator[str]:
    """Serve S3 with an empty bucket; the environment says where, so that other processes find it too."""
    import fsspec
    from moto.server import DomainDispatcherApplication, create_backend_app

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3")
        bucket = f"vectors-{server.port}"  # the buckets of all servers of a process are kept together
        system.mkdir(bucket)
        try:
            yield f"s3://{bucket}"
        finally:
            type(system).clear_instance_cache()
            server.shutdown()
            thread.join()
            server.server_close()
