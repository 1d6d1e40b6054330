"""Who may not come in: without a certificate, with a wrong one, or without speaking the language."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.identity import dev_ca
from knhk_sidecar.identity.spiffe_id import TrustDomain
from tests.e2e.sidecar import CALL_SECONDS, Sidecar, Stubs, code_of, sidecar

OPTIONS = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One daemon that strangers come to; it must answer its own people all the time."""
    with sidecar(tmp_path_factory.mktemp("strangers")) as found:
        yield found
        assert found.stop() == 0


@contextmanager
def channel(daemon: Sidecar, credentials: grpc.ChannelCredentials | None) -> Iterator[Stubs]:
    made = (
        grpc.insecure_channel(daemon.ready["grpc"])
        if credentials is None
        else grpc.secure_channel(daemon.ready["grpc"], credentials, OPTIONS)
    )
    with made:
        yield Stubs(made)


def refused(daemon: Sidecar, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """How a call ends that must not succeed; the daemon's own people are answered afterwards."""
    with channel(daemon, credentials) as stubs, pytest.raises(grpc.RpcError) as error:
        stubs.cases.ListCases(pb.ListCasesRequest(), timeout=CALL_SECONDS)
    with daemon.stubs() as stubs:
        stubs.cases.ListCases(pb.ListCasesRequest(), timeout=CALL_SECONDS)
    return code_of(error.value)


def test_without_a_certificate(daemon: Sidecar) -> None:
    ca = Path(daemon.ready["ca"]).read_bytes()
    assert refused(daemon, grpc.ssl_channel_credentials(ca)) is grpc.StatusCode.UNAVAILABLE


def test_with_a_certificate_of_another_authority(daemon: Sidecar, tmp_path: Path) -> None:
    other = dev_ca.open_authority(tmp_path).issue_client()
    ca = Path(daemon.ready["ca"]).read_bytes()
    credentials = grpc.ssl_channel_credentials(ca, other.key.read_bytes(), other.cert.read_bytes())
    assert refused(daemon, credentials) is grpc.StatusCode.UNAVAILABLE


def test_with_an_id_of_another_trust_domain_signed_by_our_authority(daemon: Sidecar) -> None:
    ours = dev_ca.open_authority(daemon.data_dir / "dev")
    theirs = dev_ca.DevAuthority(ours.directory, TrustDomain("elsewhere.org"), ours.certificate, ours.key)
    leaf = theirs.issue("stranger", "/app")
    credentials = grpc.ssl_channel_credentials(ours.ca.read_bytes(), leaf.key.read_bytes(), leaf.cert.read_bytes())
    assert refused(daemon, credentials) is grpc.StatusCode.UNAUTHENTICATED


def test_plain_grpc_on_the_tls_port(daemon: Sidecar) -> None:
    assert refused(daemon, None) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 4096,
        b"\x16\x03\x01\xff\xff",
    ],
    ids=["http", "http2", "zeros", "half a hello"],
)
def test_something_else_on_the_tls_port(daemon: Sidecar, said: bytes) -> None:
    host, port = daemon.ready["grpc"].split(":")
    with socket.create_connection((host, int(port)), timeout=CALL_SECONDS) as connection:
        connection.sendall(said)
        received = 1
        while received:
            try:
                received = len(connection.recv(4096))
            except ConnectionResetError:
                received = 0
    with daemon.stubs() as stubs:
        stubs.cases.ListCases(pb.ListCasesRequest(), timeout=CALL_SECONDS)


def test_a_web_page_on_the_rest_port(daemon: Sidecar) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        status, body = daemon.http("/api/v1/cases", headers=headers)
        assert (status, b"FOREIGN" in body) == (403, True)


def test_identity_in_a_header_changes_nothing(daemon: Sidecar) -> None:
    with daemon.stubs() as stubs:
        status = stubs.admin.GetStatus(
            pb.GetStatusRequest(omit_document_schema=True),
            metadata=(
                ("x-spiffe-id", "spiffe://knhk.dev/admin"),
                ("x-forwarded-client-cert", "URI=spiffe://knhk.dev/admin"),
            ),
            timeout=CALL_SECONDS,
        )
    assert status.principal == daemon.ready["spiffe_id"]
