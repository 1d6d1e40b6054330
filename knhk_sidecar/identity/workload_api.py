"""Client of the SPIFFE Workload API over asyncio: what the agent on this host says who we are and whom we can verify.

Source: SPIFFE Workload API standard. Each message of a stream is the whole state and replaces the one before. The
agent tells workloads apart by the process that connects, so there is nothing to authenticate with; the header
`workload.spiffe.io: true` keeps requests that were forged through a browser or a proxy out.

The messages are those of the `spiffe` package: registering a second copy of them would break whoever uses both.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.message import Message
from grpc import aio
from spiffe._proto import workload_pb2

from knhk_sidecar.identity.spiffe_id import InvalidSpiffeId, SpiffeId, TrustDomain
from knhk_sidecar.identity.tls import InvalidMaterial, Material, belongs, own_id

SERVICE: Final = "SpiffeWorkloadAPI"
HEADER: Final = (("workload.spiffe.io", "true"),)
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024  # bundles of many federated domains
RECONNECT_MS: Final = 1_000  # an agent that restarts is back within seconds; grpc's own longest pause is two minutes

PAUSE_FIRST: Final = 0.1  # s, before the agent is asked again
PAUSE_MAX: Final = 5.0  # s; an agent that is back is noticed within this

State = TypeVar("State")
Answer = TypeVar("Answer", bound=Message)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class X509State:
    """What the agent says of X.509: our SVIDs, the default one first, with all bundles that we may verify with."""

    materials: tuple[Material, ...]

    def of(self, spiffe_id: str) -> Material:
        """The material with this id; the default one when it is empty. Raises InvalidMaterial."""
        for material in self.materials:
            if not spiffe_id or str(material.spiffe_id) == spiffe_id:
                return material
        held = ", ".join(str(material.spiffe_id) for material in self.materials)
        raise InvalidMaterial(f"the agent has no SVID for {spiffe_id}, only for {held}")


@asynccontextmanager
async def workload_api(endpoint: str) -> AsyncIterator[WorkloadApi]:
    """A client of the agent at `unix:///path` or `tcp://127.0.0.1:port` (Workload Endpoint standard, section 4)."""
    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),  # agents are on this host
    ]
    async with aio.insecure_channel(target_of(endpoint), options=options) as channel:
        yield WorkloadApi(channel)


def target_of(endpoint: str) -> str:
    """The gRPC target of a Workload API endpoint. Raises ValueError when it is none."""
    if endpoint.startswith("unix:"):
        return f"unix:{endpoint.removeprefix('unix:').removeprefix('//')}"
    if endpoint.startswith("tcp://"):
        return endpoint.removeprefix("tcp://")
    raise ValueError(f"{endpoint!r} is not an endpoint of the Workload API, like unix:///run/agent.sock")


class WorkloadApi:
    """The calls that we need. Errors of the connection are grpc's; what cannot be used raises InvalidMaterial."""

    def __init__(self, channel: aio.Channel) -> None:
        self._channel = channel

    def x509(self) -> AsyncGenerator[X509State, None]:
        """Our SVIDs and bundles, now and after each change, until the stream breaks."""
        return self._states("FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse, parse_x509)

    def jwt_bundles(self) -> AsyncGenerator[Mapping[TrustDomain, bytes], None]:
        """The key sets (RFC 7517, JSON) that JWT-SVIDs of each trust domain are verified with, whole each time."""
        return self._states(
            "FetchJWTBundles", workload_pb2.JWTBundlesRequest(), workload_pb2.JWTBundlesResponse, _key_sets
        )

    async def _states(
        self, method: str, request: Message, response: type[Answer], parse: Callable[[Answer], State]
    ) -> AsyncGenerator[State, None]:
        call = self._channel.unary_stream(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )(request, metadata=HEADER)
        try:
            async for answer in call:
                yield parse(answer)
        finally:
            call.cancel()


async def keep_up(
    states: Callable[[], AsyncGenerator[State, None]], take: Callable[[State], None], lose: Callable[[str], None]
) -> None:
    """Hands on every state of a stream as it comes, until cancelled. Whenever it breaks, `lose` is told why, and it is
    opened again after a pause that grows. Raises what `lose` raises; what `take` raises counts as a broken stream."""
    pause = PAUSE_FIRST
    while True:
        try:
            async with aclosing(states()) as stream:
                async for state in stream:
                    take(state)
                    pause = PAUSE_FIRST
            problem = "the agent ended the stream"
        except (aio.AioRpcError, InvalidMaterial) as error:
            problem = explained(error)
        except Exception as error:  # noqa: BLE001  # whoever stops asking never hears of the next state
            problem = f"what the agent sent cannot be used: {error!r}"
        lose(problem)
        await asyncio.sleep(pause)
        pause = longer(pause)


def longer(pause: float) -> float:
    """Twice the pause, at most PAUSE_MAX, with up to a fifth off so that many sidecars do not come at once."""
    return min(pause * 2, PAUSE_MAX) * random.uniform(0.8, 1.0)


def explained(error: Exception) -> str:
    """Why the agent did not help, in words."""
    if isinstance(error, aio.AioRpcError):
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            return f"the agent has no identity for this process: {error.details()}"
        return f"the agent cannot be asked: {error.code().name}: {error.details()}"
    return str(error)


def parse_x509(answer: workload_pb2.X509SVIDResponse) -> X509State:
    """One message of FetchX509SVID. Raises InvalidMaterial; a bundle of others that cannot be used is left out."""
    if not answer.svids:
        raise InvalidMaterial("the agent sent no SVID")
    federated = {}
    for name, der in answer.federated_bundles.items():
        try:
            federated[_domain(name)] = _authorities(name, der)
        except InvalidMaterial as refused:  # whose callers are refused then; our own identity does not hang on it
            _log.warning("federated_bundle_refused", problem=str(refused))
    return X509State(tuple(_material(svid, federated) for svid in answer.svids))


def _key_sets(answer: workload_pb2.JWTBundlesResponse) -> Mapping[TrustDomain, bytes]:
    return {_domain(name): bundle for name, bundle in answer.bundles.items()}


def _material(svid: workload_pb2.X509SVID, federated: Mapping[TrustDomain, bytes]) -> Material:
    try:
        spiffe_id = SpiffeId.parse(svid.spiffe_id)
        chain = _certificates(svid.x509_svid)
        key = serialization.load_der_private_key(svid.x509_svid_key, None)
    except (InvalidSpiffeId, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidMaterial(f"the agent's SVID for {svid.spiffe_id!r} cannot be parsed: {error}") from error
    leaf = chain[0]
    if not belongs(key, leaf):
        raise InvalidMaterial(f"the agent's key does not belong to its SVID for {spiffe_id}")
    if own_id(leaf) != spiffe_id:
        raise InvalidMaterial(f"the agent's SVID for {spiffe_id} is a certificate of {own_id(leaf)}")
    return Material(
        b"".join(each.public_bytes(Encoding.PEM) for each in chain),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        _authorities(str(spiffe_id.trust_domain), svid.bundle),
        spiffe_id,
        leaf.not_valid_after_utc.timestamp(),
        {domain: bundle for domain, bundle in federated.items() if domain != spiffe_id.trust_domain},
    )


def _authorities(name: str, der: bytes) -> bytes:
    """The PEM of a bundle's DER certificates, one after the other."""
    try:
        return b"".join(each.public_bytes(Encoding.PEM) for each in _certificates(der))
    except ValueError as error:
        raise InvalidMaterial(f"the agent's bundle of {name} cannot be parsed: {error}") from error


def _certificates(der: bytes) -> list[x509.Certificate]:
    """At least one certificate from concatenated DER. Raises ValueError."""
    found = []
    while der:
        size = _der_size(der)
        found.append(x509.load_der_x509_certificate(der[:size]))
        der = der[size:]
    if not found:
        raise ValueError("it is empty")
    return found


def _der_size(der: bytes) -> int:
    """The size of the first DER element, its header included (X.690, 8.1.3)."""
    if len(der) < 2:
        raise ValueError("it is cut short")
    length = der[1]
    if length < 0x80:
        return 2 + length
    count = length & 0x7F
    if not 1 <= count <= 4 or len(der) < 2 + count:
        raise ValueError("its length is malformed")
    size = 2 + count + int.from_bytes(der[2 : 2 + count], "big")
    if size > len(der):
        raise ValueError("it is cut short")
    return size


def _domain(name: str) -> TrustDomain:
    try:
        return TrustDomain.parse(name)
    except InvalidSpiffeId as error:
        raise InvalidMaterial(f"the agent's bundle is of no trust domain: {error}") from error
