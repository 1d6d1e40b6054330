"""REST over mTLS, as in production: health for everybody, the rest for those who are known."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from knhk_sidecar.identity.dev_ca import open_authority
from tests.cli.daemon import Daemon, running

HEAD_SECONDS = 10.0  # what the server allows for the head of a request
LATE_SECONDS = 50.0  # by which it may be late; the machine may be shared


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    """A production daemon with TLS files, and the directory of its authority."""
    root = tmp_path_factory.mktemp("secured")
    authority = open_authority(root / "ca")
    server, client = authority.issue_server(), authority.issue_client()
    settings = root / "sidecar.toml"
    settings.write_text(
        f'tls_enabled = true\ntls_cert = "{server.cert}"\ntls_key = "{server.key}"\ntls_ca = "{authority.ca}"\n'
    )
    assert client.cert.parent == root / "ca"
    arguments = ("--config", str(settings))
    with running(root / "data", *arguments, command="serve", addresses=("grpc", "http", "metrics")) as daemon:
        yield daemon, root / "ca"


def client_of(daemon: Daemon, directory: Path, *, certificate: bool) -> httpx2.Client:
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    if certificate:
        context.load_cert_chain(directory / "client.pem", directory / "client.key")
    port = daemon.ready["http"].rpartition(":")[2]
    return httpx2.Client(base_url=f"https://localhost:{port}", verify=context, timeout=60)


def test_a_known_caller_is_served(secured: tuple[Daemon, Path]) -> None:
    with client_of(*secured, certificate=True) as http:
        assert http.get("/cases").status_code == 200
        status = http.get("/admin/status?omit_document_schema=true").json()
        assert status["principal"].startswith("spiffe://")
        assert http.get("/openapi.json").status_code == 200


def test_without_a_certificate_there_is_health_only(secured: tuple[Daemon, Path]) -> None:
    with client_of(*secured, certificate=False) as http:
        for path in ("/health", "/health/live", "/health/ready"):
            assert http.get(path).status_code == 200
        for path in ("/cases", "/openapi.json", "/swagger", "/admin/status"):
            answer = http.get(path)
            assert answer.status_code == 401, path
            assert answer.json()["reason"] == "UNAUTHENTICATED"


def test_headers_are_no_identity(secured: tuple[Daemon, Path]) -> None:
    headers = {"x-forwarded-client-cert": "URI=spiffe://knhk.dev/dev/client", "authorization": "Bearer x"}
    with client_of(*secured, certificate=False) as http:
        assert http.get("/cases", headers=headers).status_code == 401


def test_a_stranger_is_not_let_in(secured: tuple[Daemon, Path], tmp_path: Path) -> None:
    daemon, directory = secured
    stranger = open_authority(tmp_path / "stranger").issue_client()
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.load_cert_chain(stranger.cert, stranger.key)
    port = daemon.ready["http"].rpartition(":")[2]
    http = httpx2.Client(base_url=f"https://localhost:{port}", verify=context, timeout=60)
    with http, pytest.raises(httpx2.TransportError):
        http.get("/health")


@pytest.mark.long
def test_a_connection_that_says_nothing_is_closed(secured: tuple[Daemon, Path]) -> None:
    daemon, directory = secured
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    port = int(daemon.ready["http"].rpartition(":")[2])
    plain = socket.create_connection(("127.0.0.1", port), timeout=HEAD_SECONDS + LATE_SECONDS)
    with context.wrap_socket(plain, server_hostname="localhost") as silent:
        silent.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        assert silent.recv(100) == b""


def test_a_head_that_never_ends_is_refused(secured: tuple[Daemon, Path]) -> None:
    daemon, directory = secured
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    port = int(daemon.ready["http"].rpartition(":")[2])
    plain = socket.create_connection(("127.0.0.1", port), timeout=60)
    with context.wrap_socket(plain, server_hostname="localhost") as talker:
        talker.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        received = b""
        try:
            for number in range(200):
                talker.sendall(b"x-%d: %b\r\n" % (number, b"a" * 1000))
            received = talker.recv(100)
        except OSError:
            received = b"closed"
    assert received.startswith((b"HTTP/1.1 400", b"closed")) or received == b""
