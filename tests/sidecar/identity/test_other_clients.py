"""The developer's Workload API with clients that are not ours: the reference library for Python, and bare sockets."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import SpiffeId, TrustDomain, WorkloadApiClient, X509Source
from spiffe._proto import workload_pb2

from knhk_sidecar.app import Sidecar
from knhk_sidecar.identity import dev_ca, spiffe_id
from knhk_sidecar.identity.dev_agent import DevAgent
from knhk_sidecar.identity.workload_api import HEADER, SERVICE, target_of
from tests.sidecar.identity.test_variants import principal
from tests.sidecar.server.client import secure


async def test_the_reference_library_gets_everything_from_the_daemon(sidecar: Sidecar) -> None:
    """SVID, bundles and JWT, and a call to the daemon with them."""

    def ask() -> tuple[bytes, bytes, bytes, str]:
        with WorkloadApiClient(sidecar.addresses.workload_api) as client:
            svid = client.fetch_x509_svid()
            assert str(svid.spiffe_id) == sidecar.addresses.spiffe_id
            (bundle,) = client.fetch_x509_bundles().bundles
            assert bundle.trust_domain == TrustDomain("knhk.dev")
            token = client.fetch_jwt_svid({"knhk"}, SpiffeId(sidecar.addresses.spiffe_id))
            assert client.validate_jwt_svid(token.token, "knhk").spiffe_id == svid.spiffe_id
            assert client.fetch_jwt_bundles().get_bundle_for_trust_domain(TrustDomain("knhk.dev")) is not None
            key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            chain = b"".join(each.public_bytes(Encoding.PEM) for each in svid.cert_chain)
            ca = b"".join(each.public_bytes(Encoding.PEM) for each in bundle.x509_authorities)
            return ca, chain, key, str(svid.spiffe_id)

    ca, chain, key, name = await asyncio.to_thread(ask)
    async with secure(sidecar.addresses.grpc, ca, chain, key) as channel:
        assert await principal(channel) == name
    for path, mode in ((sidecar.config.dev_directory, 0o700), (target_of(sidecar.addresses.workload_api)[5:], 0o600)):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


async def test_its_source_follows_rotation_and_federation(tmp_path: Path) -> None:
    ours = dev_ca.open_authority(tmp_path, spiffe_id.TrustDomain("a.org"))
    partner = dev_ca.open_authority(tmp_path / "b", spiffe_id.TrustDomain("b.org"))
    der = {"spiffe://b.org": partner.certificate.public_bytes(Encoding.DER)}
    agent = DevAgent(ours, tmp_path / "s", path="/web", federated=der)
    await agent.start()

    def follow(loop: asyncio.AbstractEventLoop) -> None:
        with X509Source(WorkloadApiClient(agent.endpoint)) as source:
            first = source.get_x509_context().default_svid
            bundle = source.get_bundle_for_trust_domain(TrustDomain("b.org"))
            assert bundle is not None
            assert bundle.x509_authorities == {partner.certificate}
            loop.call_soon_threadsafe(agent.renew, ours)
            for _ in range(6_000):
                if source.get_x509_context().default_svid.cert_chain != first.cert_chain:
                    break
                pause.wait(0.01)
            assert source.get_x509_context().default_svid.cert_chain != first.cert_chain
            assert source.get_x509_context().default_svid.spiffe_id == first.spiffe_id

    pause = threading.Event()
    await asyncio.to_thread(follow, asyncio.get_running_loop())
    await agent.stop()


@pytest.mark.parametrize(
    "method", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles", "FetchJWTSVID", "ValidateJWTSVID"]
)
async def test_no_method_answers_without_the_header(tmp_path: Path, method: str) -> None:
    agent = DevAgent(dev_ca.open_authority(tmp_path), tmp_path / "s")
    await agent.start()
    request = workload_pb2.JWTSVIDRequest(audience=["x"]).SerializeToString() if method == "FetchJWTSVID" else b""
    async with grpc.aio.insecure_channel(target_of(agent.endpoint)) as channel:
        for metadata in ((), ((HEADER[0][0], "True"),), (("x-workload.spiffe.io", "true"),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_stream(f"/{SERVICE}/{method}", bytes, bytes)(request, metadata=metadata).read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "workload.spiffe.io" in str(refused.value.details())
    await agent.stop()
