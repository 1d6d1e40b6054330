"""What the engine asks of a store: ordered bytes, and nothing about workflows.

A store maps byte keys (not empty) to byte values, ordered as unsigned bytes. Everything above it (histories, timers,
work lists, idempotency, definitions) is a key range. One conformance suite runs over every implementation.

Errors of `commit` tell the caller what it may believe:

* `ExpectationFailed`: nothing was written; `keys` are those that held something else.
* `StoreUnavailable` and below (`StoreFull`): nothing was written and nothing of it ever will be.
* anything else (`OutcomeUnknown`, an OSError, a time-out): the writes may or may not be there. The caller stops
  writing, calls `recover()` until it returns, and reads what became of them. It never sends them again blindly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from knhk_workflow.errors import StoreError

Write = tuple[bytes, bytes | None]
"""(key, value); None deletes. A key may appear twice in one commit: the later one wins."""

Expectation = tuple[bytes, bytes | None]
"""(key, exact value); None means that the key must be absent."""

Range = tuple[bytes, bytes]
"""Half open: start <= key < end."""


class ExpectationFailed(StoreError):
    """A commit was refused because `keys` did not hold what was expected; nothing was written."""

    reason = "EXPECTATION_FAILED"
    retry = True

    def __init__(self, keys: Sequence[bytes]) -> None:
        super().__init__(
            "the stored state changed in the meantime; nothing was written, try again",
            keys=" ".join(key.hex() for key in keys),
        )
        self.keys: tuple[bytes, ...] = tuple(keys)


class OutcomeUnknown(StoreError):
    """A write failed half way: it may be there after recovery or not. `full` tells that the volume has no space."""

    reason = "OUTCOME_UNKNOWN"

    def __init__(self, message: str, *, full: bool) -> None:
        super().__init__(message)
        self.full = full


class Reads(Protocol):
    """Reading, from the newest state or from a snapshot. Never shows half of a commit."""

    async def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        ...

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with start <= key < end, ascending, or descending from the end when `reverse`."""
        ...


class Snapshot(Reads, Protocol):
    """A consistent view of one moment. It holds resources: close it. A recovery of the store ends it."""

    async def close(self) -> None:
        """Give the view back; twice is fine."""
        ...


class Store(Reads, Protocol):
    """Ordered bytes with atomic, conditional commits. Used from one event loop."""

    kind: str
    """Name for people: `memory`, `leveldb`."""

    shards: int
    """How many shards cases are spread over; fixed when the store is created."""

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        """Apply all writes, in order, if every expectation holds; else none. `durable`: return only when they survive
        a loss of power. Errors: see the module."""
        ...

    async def recover(self) -> None:
        """After an unknown outcome: return once reads are final about every commit that failed.

        Raises StoreUnavailable or StoreFull when that is not possible now (call again later); any other StoreError is
        final. On a healthy store it does nothing.
        """
        ...

    async def snapshot(self) -> Snapshot:
        """A view of this moment, consistent over several reads."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then release everything; twice is fine. Afterwards calls raise StoreUnavailable."""
        ...
