"""The Workload API of developer mode: what an agent is in production, on a socket of the developer's own directory.

It speaks the same protocol, so that an application takes its SVID here the way it will take it there. It does not tell
processes apart: whoever may open the socket is the developer. Every stream is sent again at half of an SVID's life.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket as sockets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from grpc import aio
from jwt.algorithms import ECAlgorithm
from spiffe._proto import workload_pb2, workload_pb2_grpc

from knhk_sidecar.identity.dev_ca import CLIENT_PATH, LEAF_LIFE, DevAuthority
from knhk_sidecar.identity.spiffe_id import SpiffeId
from knhk_sidecar.identity.workload_api import HEADER

Context = aio.ServicerContext[object, object]

JWT_LIFE: Final = timedelta(minutes=5)  # JWT-SVID standard, section 3.3: as short as is practical
AUDIENCES_MAX: Final = 16
PATH_BYTES_MAX: Final = 100  # sun_path holds 108 with its end


class DevAgent:
    """Serves one identity, the developer's unless told otherwise, and the bundles of its authority and others."""

    def __init__(
        self,
        authority: DevAuthority,
        socket: Path,
        *,
        path: str = CLIENT_PATH,
        dns: tuple[str, ...] = (),
        life: timedelta = LEAF_LIFE,
        federated: Mapping[str, bytes] | None = None,
    ) -> None:
        """`federated` are the DER bundles of other trust domains."""
        self._socket = socket
        self._service = _Service(authority, path, dns, life, federated or {})
        self._server: aio.Server | None = None

    def renew(self, authority: DevAuthority, *others: DevAuthority) -> None:
        """From now on this authority signs, and the bundle has the others too; every stream gets the new state."""
        self._service.renew(authority, others)

    @property
    def key_set(self) -> bytes:
        """The keys of its JWT-SVIDs (RFC 7517, JSON)."""
        return self._service.key_set

    @property
    def endpoint(self) -> str:
        """For SPIFFE_ENDPOINT_SOCKET."""
        return f"unix://{self._socket}"

    async def start(self) -> None:
        """Listens, for this user only. Raises OSError when the socket cannot be made, or somebody listens on it."""
        if len(os.fsencode(self._socket)) > PATH_BYTES_MAX:
            raise OSError(None, f"the path of a socket has at most {PATH_BYTES_MAX} bytes", str(self._socket))
        if _answers(self._socket):
            raise OSError(None, "another daemon listens there", str(self._socket))
        self._socket.unlink(missing_ok=True)  # of one that was killed
        server = aio.server(options=[("grpc.so_reuseport", 0)])
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(  # type: ignore[no-untyped-call]
            self._service, server
        )
        before = os.umask(0o177)  # nobody else may open it, from its first moment on
        try:
            server.add_insecure_port(f"unix:{self._socket}")
        except RuntimeError as error:
            raise OSError(None, "the socket cannot be made", str(self._socket)) from error
        finally:
            os.umask(before)
        await server.start()
        self._socket.chmod(0o600)
        self._server = server

    async def stop(self) -> None:
        """Ends the streams and lets the socket go."""
        self._service.leave()
        if self._server is not None:
            await self._server.stop(0.5)
            self._socket.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether somebody listens on a socket."""
    with sockets.socket(sockets.AF_UNIX) as trying:
        trying.settimeout(1.0)
        try:
            trying.connect(os.fspath(path))
        except OSError:
            return False
    return True


class _Service(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """The five calls; names as the standard has them."""

    def __init__(
        self,
        authority: DevAuthority,
        path: str,
        dns: tuple[str, ...],
        life: timedelta,
        federated: Mapping[str, bytes],
    ) -> None:
        self._authority = authority
        self._bundle = b""
        self._id = SpiffeId.parse(f"spiffe://{authority.trust_domain}{path}")
        self._dns = dns
        self._life = life
        self._federated = federated
        self._leaving = False
        self._changed = asyncio.Event()
        self._jwt_key = ec.generate_private_key(ec.SECP256R1())
        self._key_id = secrets.token_hex(8)  # another key has another id, so that whoever caches keys asks again
        jwk = ECAlgorithm.to_jwk(self._jwt_key.public_key(), True)
        self.key_set = msgspec.json.encode({"keys": [{**jwk, "kid": self._key_id, "use": "jwt-svid"}]})
        self.renew(authority, ())

    def renew(self, authority: DevAuthority, others: Sequence[DevAuthority]) -> None:
        self._authority = authority
        self._bundle = b"".join(each.certificate.public_bytes(Encoding.DER) for each in (authority, *others))
        self._tell()

    def leave(self) -> None:
        self._leaving = True
        self._tell()

    def _tell(self) -> None:
        """Wakes every stream; the next change is another event."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def FetchX509SVID(  # noqa: N802
        self, _: workload_pb2.X509SVIDRequest, context: Context
    ) -> AsyncIterator[workload_pb2.X509SVIDResponse]:
        await _expect_header(context)
        while not self._leaving:
            changed = self._changed
            key, leaf = self._authority.sign("workload", self._id, dns=self._dns, life=self._life)
            svid = workload_pb2.X509SVID(
                spiffe_id=str(self._id),
                x509_svid=leaf.public_bytes(Encoding.DER),
                x509_svid_key=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
                bundle=self._bundle,
            )
            yield workload_pb2.X509SVIDResponse(svids=[svid], federated_bundles=self._federated)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self._life.total_seconds() / 2)

    async def FetchX509Bundles(  # noqa: N802
        self, _: workload_pb2.X509BundlesRequest, context: Context
    ) -> AsyncIterator[workload_pb2.X509BundlesResponse]:
        await _expect_header(context)
        while not self._leaving:
            changed = self._changed
            yield workload_pb2.X509BundlesResponse(bundles={self._domain: self._bundle, **self._federated})
            await changed.wait()

    async def FetchJWTSVID(  # noqa: N802
        self, request: workload_pb2.JWTSVIDRequest, context: Context
    ) -> workload_pb2.JWTSVIDResponse:
        await _expect_header(context)
        if not 1 <= len(request.audience) <= AUDIENCES_MAX:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"1 to {AUDIENCES_MAX} audiences are needed")
        if request.spiffe_id not in ("", str(self._id)):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"the only identity here is {self._id}")
        now = datetime.now(UTC)
        claims = {"sub": str(self._id), "aud": list(request.audience), "iat": now, "exp": now + JWT_LIFE}
        token = jwt.encode(claims, self._jwt_key, "ES256", {"kid": self._key_id})
        return workload_pb2.JWTSVIDResponse(svids=[workload_pb2.JWTSVID(spiffe_id=str(self._id), svid=token)])

    async def FetchJWTBundles(  # noqa: N802
        self, _: workload_pb2.JWTBundlesRequest, context: Context
    ) -> AsyncIterator[workload_pb2.JWTBundlesResponse]:
        await _expect_header(context)
        while not self._leaving:
            changed = self._changed
            yield workload_pb2.JWTBundlesResponse(bundles={self._domain: self.key_set})
            await changed.wait()

    async def ValidateJWTSVID(  # noqa: N802
        self, request: workload_pb2.ValidateJWTSVIDRequest, context: Context
    ) -> workload_pb2.ValidateJWTSVIDResponse:
        await _expect_header(context)
        try:
            claims = jwt.decode(request.svid, self._jwt_key.public_key(), ["ES256"], audience=request.audience)
        except jwt.InvalidTokenError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a JWT-SVID of this trust domain: {error}")
        answer = workload_pb2.ValidateJWTSVIDResponse(spiffe_id=claims["sub"])
        answer.claims.update(claims)
        return answer

    @property
    def _domain(self) -> str:
        return f"spiffe://{self._authority.trust_domain}"


async def _expect_header(context: Context) -> None:
    if HEADER[0] not in tuple((key, value) for key, value in context.invocation_metadata() or ()):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the header workload.spiffe.io: true is missing")
