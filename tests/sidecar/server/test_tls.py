"""Real TLS: who gets in, who does not, and certificates that change while the daemon runs."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import serialization

from knhk_sidecar.api import pb
from knhk_sidecar.app import CannotStart, Sidecar
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity import dev_ca
from tests.sidecar.identity.authority import Authority, Wish
from tests.sidecar.server.client import ANY_PORT, developer, secure


async def status(channel: grpc.aio.Channel) -> pb.GetStatusResponse:
    return await pb.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest(omit_document_schema=True), timeout=60)


async def code(channel: grpc.aio.Channel) -> str:
    try:
        await status(channel)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


def ca_of(sidecar: Sidecar) -> bytes:
    return Path(sidecar.addresses.ca).read_bytes()


def authority_of(sidecar: Sidecar) -> dev_ca.DevAuthority:
    return dev_ca.open_authority(sidecar.config.dev_directory)


async def test_the_developers_certificate_is_who_calls(sidecar: Sidecar) -> None:
    async with developer(sidecar.addresses) as channel:
        assert (await status(channel)).principal == "spiffe://knhk.dev/dev/client" == sidecar.addresses.spiffe_id
    async with grpc.aio.insecure_channel(sidecar.addresses.grpc_plain) as channel:
        assert (await status(channel)).principal == "spiffe://knhk.dev/dev/local"


async def test_other_certificates_of_the_authority_are_other_callers(sidecar: Sidecar) -> None:
    clerk = authority_of(sidecar).issue("clerk", "/ns/office/sa/clerk")
    ca = ca_of(sidecar)
    async with secure(sidecar.addresses.grpc, ca, clerk.cert.read_bytes(), clerk.key.read_bytes()) as channel:
        assert (await status(channel)).principal == "spiffe://knhk.dev/ns/office/sa/clerk"


async def test_without_certificate_there_is_no_connection(sidecar: Sidecar) -> None:
    async with secure(sidecar.addresses.grpc, ca_of(sidecar)) as channel:
        assert await code(channel) == "UNAVAILABLE"


async def test_a_certificate_of_another_authority_gets_no_connection(sidecar: Sidecar) -> None:
    cert, key = Authority().issue(Wish(uris=("spiffe://knhk.dev/dev/client",)))
    async with secure(sidecar.addresses.grpc, ca_of(sidecar), cert, key) as channel:
        assert await code(channel) == "UNAVAILABLE"


async def test_a_client_of_another_authority_does_not_trust_the_daemon(sidecar: Sidecar) -> None:
    other = Authority()
    cert, key = other.issue()
    async with secure(sidecar.addresses.grpc, other.pem, cert, key) as channel:
        assert await code(channel) == "UNAVAILABLE"


@pytest.mark.parametrize(
    "wish",
    [
        Wish(uris=(), dns=("client.knhk.dev",)),
        Wish(uris=("spiffe://knhk.dev/a", "spiffe://knhk.dev/b")),
        Wish(uris=("spiffe://KNHK.dev/a",)),
        Wish(uris=("spiffe://other.dev/a",)),
        Wish(uris=("spiffe://knhk.dev/a?role=admin",)),
        Wish(uris=("spiffe://knhk.dev/a",), usage=None),
        Wish(uris=("spiffe://knhk.dev/a",), usage=("digital_signature", "key_cert_sign")),
    ],
)
async def test_what_tls_accepts_but_is_no_svid_is_nobody(sidecar: Sidecar, wish: Wish) -> None:
    """Signed by the right authority, so that the connection stands; the leaf check refuses each call."""
    made = authority_of(sidecar)
    signer = Authority()
    signer.key, signer.name = made.key, made.certificate.subject
    cert, key = signer.issue(wish)
    async with secure(sidecar.addresses.grpc, ca_of(sidecar), cert, key) as channel:
        assert await code(channel) == "UNAUTHENTICATED"


async def test_a_new_server_certificate_is_used_without_dropping_a_call(sidecar: Sidecar) -> None:
    async with developer(sidecar.addresses) as old:
        before = await served(sidecar)
        authority_of(sidecar).issue_server()
        async with asyncio.timeout(60):
            while await served(sidecar) == before:
                assert (await status(old)).version
                await asyncio.sleep(0.1)
        assert (await status(old)).version


async def served(sidecar: Sidecar) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=sidecar.addresses.ca)
    context.load_cert_chain(sidecar.addresses.cert, sidecar.addresses.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = sidecar.addresses.grpc.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    assert isinstance(shown, bytes)
    return shown


async def test_rest_over_tls_knows_the_same_caller(guarded: Sidecar, tmp_path: Path) -> None:
    config = SidecarConfig(
        workflow_db_path=":memory:",
        tls_enabled=True,
        tls_cert=guarded.config.tls_cert,
        tls_key=guarded.config.tls_key,
        tls_ca=guarded.config.tls_ca,
        address=ANY_PORT,
        http_address=ANY_PORT,
        metrics_address="",
        drain_seconds=1,
    )
    async with Sidecar(config) as running:
        client = tmp_path / "data" / "dev"
        answer = await get(running.addresses.http, "/api/v1/admin/status", client, with_certificate=True)
        assert answer[0] == 200
        assert json.loads(answer[1])["principal"] == "spiffe://knhk.dev/dev/client"
        assert (await get(running.addresses.http, "/api/v1/admin/status", client, with_certificate=False))[0] == 401
        assert (await get(running.addresses.http, "/health/ready", client, with_certificate=False))[0] == 200


async def test_a_rest_connection_cannot_be_resumed(sidecar: Sidecar, tmp_path: Path) -> None:
    """It would not be compared with the authorities of today."""
    config = SidecarConfig(
        workflow_enabled=False,
        tls_enabled=True,
        tls_cert=str(tmp_path / "data/dev/server.pem"),
        tls_key=str(tmp_path / "data/dev/server.key"),
        tls_ca=sidecar.addresses.ca,
        address=ANY_PORT,
        http_address=ANY_PORT,
        metrics_address="",
        drain_seconds=1,
    )
    async with Sidecar(config) as running:
        context = ssl.create_default_context(cafile=sidecar.addresses.ca)
        context.load_cert_chain(sidecar.addresses.cert, sidecar.addresses.key)
        host, _, port = running.addresses.http.rpartition(":")

        def ask(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
            with (
                socket.create_connection((host, int(port))) as plain,
                context.wrap_socket(plain, server_hostname="localhost", session=session) as secured,
            ):
                secured.sendall(f"GET /live HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: close\r\n\r\n".encode())
                assert b" 200 " in secured.recv(65536)
                assert not secured.session_reused
                return secured.session

        await asyncio.to_thread(ask, await asyncio.to_thread(ask, None))


async def get(address: str, path: str, directory: Path, *, with_certificate: bool) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    if with_certificate:
        context.load_cert_chain(directory / "client.pem", directory / "client.key")
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), body


async def test_material_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.issue(Wish(uris=("spiffe://a.org/sidecar",), dns=("localhost",)))
    other_key = serialization.load_pem_private_key(authority.issue()[1], None)
    files = {"cert": cert, "key": key, "ca": authority.pem}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def config(spiffe_id: str = "") -> SidecarConfig:
        return SidecarConfig(
            workflow_enabled=False,
            tls_enabled=True,
            tls_cert=str(tmp_path / "cert"),
            tls_key=str(tmp_path / "key"),
            tls_ca=str(tmp_path / "ca"),
            address=ANY_PORT,
            http_address="",
            metrics_address="",
            spiffe_id=spiffe_id,
        )

    with pytest.raises(CannotStart, match=r"spiffe_id is spiffe://a\.org/other"):
        await Sidecar(config(spiffe_id="spiffe://a.org/other")).start()
    async with (
        Sidecar(config(spiffe_id="spiffe://a.org/sidecar")) as running,
        secure(running.addresses.grpc, authority.pem, *authority.issue()) as channel,
    ):
        assert (await status(channel)).principal == "spiffe://a.org/web"
    (tmp_path / "key").write_bytes(
        other_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(CannotStart, match="does not belong to the certificate"):
        await Sidecar(config()).start()
