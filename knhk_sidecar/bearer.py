"""Bearer tokens of a client: where they come from, and how they get onto its calls.

A source is a function without arguments that gives the newest token. It is asked for each call, or for each connection
of a worker, so that a token is replaced before it ends without anything being made anew. Clients with a certificate
need none: the certificate decides alone.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

import grpc
from google.protobuf.message import Message

from knhk_sidecar import files
from knhk_sidecar.call_details import CallDetails

TokenSource = Callable[[], str]
TOKEN_BYTES_MAX: Final = 8 * 1024  # what the daemon reads
FETCH_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 5.0  # after an agent that gave no token, while the one before still counts
HEADER: Final = "authorization"


class NoToken(Exception):
    """There is no token to show; `mend` says what to do."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend


class TokenFile:
    """A token in a file, such as a projected service account token; read again when the file changes."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._stamp = files.MISSING
        self._token = ""

    def __call__(self) -> str:
        """The newest token. Raises NoToken."""
        mend = "name a file that has one token and nothing else"
        try:
            status = self._path.stat()
            stamp = files.stamp_of(status)
            if stamp != self._stamp:
                if status.st_size > TOKEN_BYTES_MAX:
                    raise NoToken(f"{self._path} has more than {TOKEN_BYTES_MAX} bytes", mend)
                self._token = one_token(self._path.read_text(encoding="ascii"), str(self._path))
                self._stamp = stamp
        except UnicodeDecodeError as error:
            raise NoToken(f"{self._path} is no token", mend) from error
        except OSError as error:
            raise NoToken(f"{self._path} cannot be read: {error.strerror}", mend) from error
        return self._token


class AgentToken:
    """JWT-SVIDs from the SPIFFE Workload API for one audience, each used for half of its life; to its end while the
    agent is away."""

    def __init__(self, endpoint: str, audience: str, spiffe_id: str = "") -> None:
        """`endpoint` like unix:///run/spire/agent.sock; `spiffe_id` empty: the agent's choice."""
        self._endpoint = endpoint
        self._audience = audience
        self._id = spiffe_id
        self._token = ""
        self._renew_at = 0.0
        self._ends = 0.0

    def __call__(self) -> str:
        """The newest token. Raises NoToken."""
        if time.time() >= self._renew_at:
            try:
                self._token = self._fetch()
            except NoToken:
                if time.time() >= self._ends:
                    raise
                self._renew_at = time.time() + AGAIN_SECONDS
                return self._token
            self._ends = _end_of(self._token)
            self._renew_at = (time.time() + self._ends) / 2
        return self._token

    def _fetch(self) -> str:
        from spiffe._proto import workload_pb2  # noqa: PLC0415 - 30 ms that only who has an agent pays

        from knhk_sidecar.identity.workload_api import HEADER as FOR_AGENTS  # noqa: PLC0415
        from knhk_sidecar.identity.workload_api import SERVICE, target_of  # noqa: PLC0415

        mend = "see whether the agent runs, and whether it has an entry for this process"
        try:
            target = target_of(self._endpoint)
        except ValueError as error:
            raise NoToken(str(error), "write unix:///path/of/agent.sock") from error
        with grpc.insecure_channel(
            target, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        ) as channel:
            fetch = channel.unary_unary(
                f"/{SERVICE}/FetchJWTSVID",
                request_serializer=workload_pb2.JWTSVIDRequest.SerializeToString,
                response_deserializer=workload_pb2.JWTSVIDResponse.FromString,
            )
            request = workload_pb2.JWTSVIDRequest(audience=[self._audience], spiffe_id=self._id)
            try:
                answer = fetch(request, metadata=FOR_AGENTS, timeout=FETCH_SECONDS)
            except grpc.RpcError as error:
                said = cast("grpc.Call", error).details()  # what a call raises is that call
                raise NoToken(f"the agent at {self._endpoint} gave no token: {said}", mend) from error
        if not answer.svids:
            raise NoToken(f"the agent at {self._endpoint} gave no token", mend)
        return str(answer.svids[0].svid)


def one_token(text: str, source: str) -> str:
    """The token in a text, without the end of its line. Raises NoToken, which never repeats the text."""
    token = text.strip()
    if not token or len(token) > TOKEN_BYTES_MAX or not token.isascii() or not token.isprintable() or " " in token:
        raise NoToken(f"{source} has no token", "give one token and nothing else")
    return token


def header_of(source: TokenSource) -> tuple[str, str]:
    """The token as gRPC metadata."""
    return HEADER, f"Bearer {source()}"


def with_token(channel: grpc.Channel, source: TokenSource) -> grpc.Channel:
    """A channel whose calls carry the token. The caller sees to it that nobody else can read what is sent."""
    return grpc.intercept_channel(channel, _Interceptor(source))


class _Interceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]  # generic in the stubs only, all four
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Puts the token on every kind of call."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Message], grpc.CallFuture[Message]],
        client_call_details: grpc.ClientCallDetails,
        request: Message,
    ) -> grpc.CallFuture[Message]:
        return continuation(self._with(client_call_details), request)

    def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Message], grpc.CallIterator[Message]],
        client_call_details: grpc.ClientCallDetails,
        request: Message,
    ) -> grpc.CallIterator[Message]:
        return continuation(self._with(client_call_details), request)

    def intercept_stream_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Iterator[Message]], grpc.CallFuture[Message]],
        client_call_details: grpc.ClientCallDetails,
        request_iterator: Iterator[Message],
    ) -> grpc.CallFuture[Message]:
        return continuation(self._with(client_call_details), request_iterator)

    def intercept_stream_stream(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Iterator[Message]], grpc.CallIterator[Message]],
        client_call_details: grpc.ClientCallDetails,
        request_iterator: Iterator[Message],
    ) -> grpc.CallIterator[Message]:
        return continuation(self._with(client_call_details), request_iterator)

    def _with(self, details: grpc.ClientCallDetails) -> grpc.ClientCallDetails:
        return CallDetails(details, details.timeout, (header_of(self._source),))


def _end_of(token: str) -> float:
    """When a token of our own ends, Unix seconds; now when it does not say."""
    try:
        payload = token.split(".")[1]
        claims: object = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        end: object = claims["exp"] if isinstance(claims, dict) else None
    except (IndexError, KeyError, ValueError):
        end = None
    return float(end) if isinstance(end, int | float) else time.time()
