"""The protocol of connectors: one call in, one answer or one failure out.

A connector is told what to send and gives back what came of it. It holds no queue, makes no second attempt and keeps no
state of cases: the engine does that, durably. It may keep connections.

What a repeated call means outside is the connector's `delivery`:

    idempotent      repeating it changes nothing (reads, and writes that say what is to be)
    keyed           it carries `Call.key`, by which the other side recognises a repetition
    at-most-once    it must not be repeated unless it certainly was not received: an unknown outcome is an incident
    verifiable      an unknown outcome can be looked up by `verify`
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from knhk_workflow.connectors.breaker import BreakerRule

Delivery = Literal["idempotent", "keyed", "at-most-once", "verifiable"]

Received = Literal["no", "maybe", "yes"]
"""Whether the other side acted on a call that failed: certainly not, nobody knows, or it answered that it did not."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """One effect to bring about."""

    key: str
    """The same for every attempt at the same effect, also after a restart; different for different effects."""
    request: bytes
    """What is to be sent, a JSON object; its members are the connector's."""
    attempt: int = 1


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the other side said."""

    body: bytes
    """A JSON object {status, headers, body}, as `result` sees it, by the rules of case data: nested at most 64 deep,
    each key once, integers of 64 bits. Anything else is the call's failure."""
    status: str


class CallFailed(Exception):
    """A call that gave no answer to go on with. `code` is stable, `message` is for people and holds no secrets."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        received: Received = "no",
        permanent: bool = False,
        pause: int = 0,
        data: bytes = b"",
        blame: bool = True,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.received: Received = received
        self.permanent = permanent
        """The same call would fail again."""
        self.pause = pause
        """Nanoseconds for which the other side does not want to be asked."""
        self.data = data
        """What the other side said, a JSON object."""
        self.blame = blame
        """Whether it tells against the health of the other side."""


class PoolState(msgspec.Struct, frozen=True):
    """Connections of a connector: in use, open, and calls that wait for one."""

    active: int
    size: int
    waiting: int


class Connector(Protocol):
    """One configured way to the outside. All methods are called in the event loop."""

    timeout: float
    """Seconds that one call may take in all."""
    max_concurrent: int
    """Calls at once to one target."""
    declared: Delivery
    """What a repeated call means when the call itself does not say more."""
    breaker: BreakerRule
    """When a target is left alone, and for how long."""

    def target(self, request: bytes) -> str:
        """Where a call would go, such as `https://host:443`: what one circuit breaker is about. Raises CallFailed."""
        ...

    def delivery(self, request: bytes) -> Delivery:
        """What a repetition of this call means."""
        ...

    async def call(self, call: Call) -> Answer:
        """Make one call. Raises CallFailed; cancelling it gives the call up."""
        ...

    async def verify(self, call: Call) -> Answer | None:
        """Whether a call of unknown outcome was made: its answer, or None when it certainly was not. Raises CallFailed
        when that cannot be found out. Only asked of `verifiable` connectors."""
        ...

    async def probe(self) -> str:
        """Whether the other side can be reached, in words. Raises CallFailed."""
        ...

    def pool(self) -> PoolState:
        """Its connections now."""
        ...

    async def close(self) -> None:
        """Let go of all connections. Calls under way fail."""
        ...
