"""A Workload API that says what a test tells it to: chains, bundles and ids of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from grpc import aio
from spiffe._proto import workload_pb2

from knhk_sidecar.identity.workload_api import SERVICE
from tests.sidecar.identity.authority import Authority


class SpokenAgent:
    """Serves FetchX509SVID on a socket; every `say` is sent to all who listen."""

    def __init__(self, socket: Path) -> None:
        self.endpoint = f"unix://{socket}"
        self._answer = workload_pb2.X509SVIDResponse()
        self._said = asyncio.Event()

    def say(
        self,
        spiffe_id: str,
        cert: bytes,
        key: bytes,
        *bundle: Authority,
        federated: Mapping[str, tuple[Authority, ...]] | None = None,
    ) -> None:
        """From now on: this certificate with its chain, PEM; the authorities of its domain and those of others."""
        chain = x509.load_pem_x509_certificates(cert)
        private = load_pem_private_key(key, None)
        svid = workload_pb2.X509SVID(
            spiffe_id=spiffe_id,
            x509_svid=b"".join(each.public_bytes(Encoding.DER) for each in chain),
            x509_svid_key=private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            bundle=b"".join(each.der for each in bundle),
        )
        others = {f"spiffe://{name}": b"".join(each.der for each in of) for name, of in (federated or {}).items()}
        self._answer = workload_pb2.X509SVIDResponse(svids=[svid], federated_bundles=others)
        self._said.set()
        self._said = asyncio.Event()

    async def _fetch(
        self, _: workload_pb2.X509SVIDRequest, __: aio.ServicerContext[object, object]
    ) -> AsyncIterator[workload_pb2.X509SVIDResponse]:
        while True:
            said = self._said
            yield self._answer
            await said.wait()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[SpokenAgent]:
        server = aio.server()
        method = grpc.unary_stream_rpc_method_handler(
            self._fetch,
            workload_pb2.X509SVIDRequest.FromString,
            workload_pb2.X509SVIDResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"FetchX509SVID": method}),))
        server.add_insecure_port(self.endpoint.replace("unix://", "unix:"))
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)
