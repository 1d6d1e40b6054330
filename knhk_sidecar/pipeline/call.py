"""One call on its way: what the transports fill in, and what the stages find out."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from knhk_sidecar.identity.principal import ANONYMOUS, Principal
from knhk_sidecar.pipeline.permissions import Permission, permission_of
from knhk_sidecar.pipeline.precedence import READ, precedence_of
from knhk_workflow import Witness

Protocol = Literal["grpc", "rest"]
Request = Message | AsyncIterator[Message]
Send = Callable[[Message], Awaitable[None]]
Metadata = Sequence[tuple[str, str | bytes]]

# Fields of a request that say what the call is about; they go into its log line when the request has them.
SUBJECTS: Final = ("case_id", "workflow_id", "spec_id", "item_id", "pattern_id")
# Lists in a request whose elements are work of their own: they count when a caller's requests are counted.
BATCHES: Final = ("cases", "executions", "completions", "failures")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_NO_TRACE = "0" * 32
_LOCAL_PEERS = ("ipv4:127.", "ipv6:[::1]:", "ipv6:%5B::1%5D:", "unix:")  # gRPC escapes the brackets


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One RPC of a service, with everything that can be known about its calls in advance."""

    path: str
    """`/knhk.sidecar.v1.CaseService/GetCase`."""
    service: str
    name: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool
    permission: Permission | None
    """None: nobody may call it."""
    subjects: tuple[str, ...]
    has_request_id: bool
    waits: bool
    """May wait for a case to end when its request says so, or always when it has no `wait` field."""
    wait_field: bool
    precedence: int = READ
    """Whose turn comes first when places are short (pipeline/precedence.py)."""
    batches: tuple[str, ...] = ()
    """Those of BATCHES that the request has."""

    @property
    def streams(self) -> bool:
        """Whether either side is a stream."""
        return self.client_streaming or self.server_streaming

    @property
    def watches(self) -> bool:
        """Whether it tells of what happens until its reader leaves. A download, whose messages are chunks of one whole,
        comes to an end."""
        downloads = "chunk" in self.response.DESCRIPTOR.fields_by_name
        return self.server_streaming and not self.client_streaming and not downloads


class Call:
    """One call. The transports make it; `identify` says who it is that calls, `authorize` what that one is here, and
    `audit` sets the witness. A transport may give it a later deadline, and a place to send to, before it runs."""

    __slots__ = (
        "_trace",
        "chain",
        "deadline",
        "leaf",
        "metadata",
        "method",
        "peer",
        "principal",
        "protocol",
        "send",
        "tls",
        "trouble",
        "witness",
    )

    def __init__(
        self,
        method: Method,
        *,
        protocol: Protocol,
        peer: str,
        leaf: bytes | None = None,
        tls: bool = False,
        chain: bytes = b"",
        deadline: int = 0,
        metadata: Metadata = (),
        send: Send | None = None,
    ) -> None:
        """`peer` names the connection (`ipv4:127.0.0.1:1234`), `leaf` is the PEM of a certificate that TLS verified and
        `chain` of those that came with it, `tls` says that nobody on the way reads what is sent, `deadline` is
        nanoseconds of the engine's clock (0 = none), `send` takes the messages of a response stream.
        """
        self.method = method
        self.protocol = protocol
        self.peer = peer
        self.leaf = leaf
        self.tls = tls
        self.chain = chain
        self.deadline = deadline
        self.metadata = metadata
        self.send = send
        self.principal: Principal = ANONYMOUS
        self.witness: Witness | None = None
        self.trouble: Exception | None = None
        """Why its request was never handed over (Pipeline.refuse)."""
        self._trace: str | None = None

    @property
    def authorization(self) -> Sequence[str | bytes]:
        """Every value of the header `authorization`."""
        found: tuple[str | bytes, ...] = ()
        for key, value in self.metadata:
            if key == "authorization":
                found += (value,)
        return found

    @property
    def private(self) -> bool:
        """Whether what the caller sends can be read by nobody else: by TLS, or because it never leaves this host."""
        return self.tls or self.peer.startswith(_LOCAL_PEERS)

    @property
    def trace_id(self) -> str:
        """The trace of the caller's W3C traceparent; empty without a valid one."""
        if self._trace is None:
            self._trace = _trace_of(self.metadata)
        return self._trace


def _trace_of(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == "traceparent":
            found = _TRACE_PARENT.fullmatch(value if isinstance(value, str) else value.decode("latin-1"))
            return found[1] if found and found[1] != _NO_TRACE else ""
    return ""


def methods_of(service: ServiceDescriptor, name: str = "") -> Mapping[str, Method]:
    """The RPCs of a service by path; `name` when it is offered under another one."""
    found = (_method(descriptor, name or service.full_name) for descriptor in service.methods)
    return {method.path: method for method in found}


def _method(descriptor: MethodDescriptor, service: str) -> Method:
    client = descriptor.client_streaming
    path = f"/{service}/{descriptor.name}"
    fields = descriptor.input_type.fields_by_name
    permission = permission_of(path)
    return Method(
        path=path,
        service=service,
        name=descriptor.name,
        request=message_factory.GetMessageClass(descriptor.input_type),
        response=message_factory.GetMessageClass(descriptor.output_type),
        client_streaming=client,
        server_streaming=descriptor.server_streaming,
        permission=permission,
        subjects=() if client else tuple(field for field in SUBJECTS if field in fields),
        has_request_id="request_id" in fields and not client,
        waits=not (client or descriptor.server_streaming) and ("wait" in fields or descriptor.name.startswith("Wait")),
        wait_field="wait" in fields,
        precedence=precedence_of(descriptor.name, permission),
        batches=tuple(field for field in BATCHES if field in fields),
    )
