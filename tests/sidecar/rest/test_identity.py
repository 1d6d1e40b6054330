"""REST over mTLS, as in production: health for everybody, the rest for those who are known."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from knhk_sidecar.api import pb
from knhk_sidecar.app import CannotStart, Sidecar
from knhk_sidecar.client import Client, Endpoint
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity.dev_ca import open_authority
from tests.cli.daemon import FREE, Daemon, running
from tests.sidecar.identity.authority import Authority

HEAD_SECONDS = 10.0  # what the server allows for the head of a request
LATE_SECONDS = 50.0  # by which it may be late; the machine may be shared


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    """A production daemon with TLS files, and the directory of its authority, whose name is not English."""
    root = tmp_path_factory.mktemp("secured")
    authority = open_authority(root / "ca")
    server, client = authority.issue_server(), authority.issue_client()
    authority.ca.write_bytes("# Autorité à tout faire\n".encode() + authority.ca.read_bytes())
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


def test_what_a_stranger_sends_is_not_read(secured: tuple[Daemon, Path]) -> None:
    with client_of(*secured, certificate=False) as http:
        for path, body in (("/cases", b"{"), ("/cases", b'{"data": ' + b"[" * 100_000), ("/cases:runBatch", b"\xff")):
            answer = http.post(path, content=body)
            assert (answer.status_code, answer.json()["reason"]) == (401, "UNAUTHENTICATED")
        assert http.get("/cases?page_size=x").status_code == 401
        assert http.post("/cases", content=b"x", headers={"content-type": "image/png"}).status_code == 401


def test_strangers_with_large_bodies_hold_nobody_up(secured: tuple[Daemon, Path]) -> None:
    """A body of 4 MB that took a second to read is answered at once, and others are served meanwhile."""
    body = b'{"spec_id": "x", "data": {"a": [' + b",".join([b"{}"] * 1_300_000) + b"]}}"
    with client_of(*secured, certificate=False) as http, client_of(*secured, certificate=True) as known:
        assert known.get("/health/live").status_code == 200
        before = seconds_used(secured[0])
        assert http.post("/cases", content=body).status_code == 401
        assert seconds_used(secured[0]) - before < 0.4
        assert known.get("/cases").status_code == 200


def seconds_used(daemon: Daemon) -> float:
    """Processor time of a daemon."""
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_too_many_elements_are_not_made_into_messages(secured: tuple[Daemon, Path]) -> None:
    body = b'{"cases": [' + b",".join([b'{"nonsense": 1}'] * 200_000) + b"]}"
    with client_of(*secured, certificate=True) as http:
        answer = http.post("/cases:runBatch", content=body)
        assert (answer.status_code, answer.json()["reason"]) == (422, "LIMIT_EXCEEDED"), answer.text


def test_a_client_verifies_the_id_with_a_bundle_in_any_language(secured: tuple[Daemon, Path]) -> None:
    daemon, directory = secured
    ca, cert, key = (directory / name for name in ("ca.pem", "client.pem", "client.key"))
    endpoint = Endpoint(daemon.ready["grpc"], ca, cert, key, server_id="spiffe://knhk.dev")
    with Client(endpoint) as client:
        assert client.admin.GetStatus(pb.GetStatusRequest(omit_document_schema=True), timeout=10).version


async def test_a_certificate_that_the_listener_refuses_is_said_in_a_sentence(tmp_path: Path) -> None:
    """1,024 bits: gRPC shows it, the library below HTTPS does not."""
    authority, key = Authority(), rsa.generate_private_key(65537, 1024)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .sign(authority.key, hashes.SHA256())
    )
    (tmp_path / "cert").write_bytes(leaf.public_bytes(Encoding.PEM))
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "ca").write_bytes(authority.pem)
    config = SidecarConfig(
        workflow_db_path=":memory:",
        tls_enabled=True,
        tls_cert=str(tmp_path / "cert"),
        tls_key=str(tmp_path / "key"),
        tls_ca=str(tmp_path / "ca"),
        spiffe_trust_domain="a.org",
        address=FREE,
        http_address=FREE,
        metrics_address="",
    )
    with pytest.raises(CannotStart, match=r"cannot listen on 127\.0\.0\.1:0 for HTTP: .*too small"):
        await Sidecar(config).start()
