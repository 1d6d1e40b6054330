"""The outside of the simulation: services that connectors call. They answer, refuse, are slow, or act without a word.

What must be true: a call is written before it is made; one that must not be made twice is made as often as the records
say that it was begun; and what a connector reports as done was done. The ledger has what is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Final

from knhk_workflow import (
    Answer,
    BreakerRule,
    Call,
    CallFailed,
    Connector,
    ConnectorConfig,
    ConnectorDelivery,
    ConnectorSetup,
    PoolState,
    Surroundings,
)
from tests.simulation.disk import TICK_S
from tests.simulation.ledger import Ledger

TIMEOUT_S: Final = 0.5  # virtual
SLOW_TICKS: Final = 20
KIND: Final = "simulated"
DELIVERIES: Final[Mapping[str, ConnectorDelivery]] = {
    "safe": "keyed",
    "once": "at-most-once",
    "checked": "verifiable",
}
ANSWER: Final = b'{"status": 200, "headers": {}, "body": {"n0": 3}}'


class Outside:
    """All services of an episode; they outlive the engine."""

    def __init__(self, random: Random, ledger: Ledger) -> None:
        self.random = random
        self.ledger = ledger
        self.calm = False

    def setup(self) -> ConnectorSetup:
        """What an engine may call."""
        configured = tuple(ConnectorConfig(name, KIND, name.encode()) for name in DELIVERIES)
        return ConnectorSetup(configured=configured, kinds={KIND: self._made})

    def _made(self, config: bytes, surroundings: Surroundings) -> Connector:
        return Service(self, DELIVERIES[config.decode()])


class Service:
    """One of them, as one life of the engine knows it."""

    timeout = TIMEOUT_S
    max_concurrent = 3
    breaker = BreakerRule(failures=3, window=5.0, pause=2.0)

    def __init__(self, outside: Outside, delivery: ConnectorDelivery) -> None:
        self._outside = outside
        self.declared: ConnectorDelivery = delivery

    def target(self, request: bytes) -> str:
        return self.declared

    def delivery(self, request: bytes) -> ConnectorDelivery:
        return self.declared

    async def call(self, call: Call) -> Answer:
        outside = self._outside
        ledger, random = outside.ledger, outside.random
        ledger.called(call.key)
        chance = 1.0 if outside.calm else random.random()
        await asyncio.sleep(random.randint(0, SLOW_TICKS) * TICK_S)
        if chance < 0.12:
            raise CallFailed("busy", "come back later", received="no")
        if chance < 0.15:
            raise CallFailed("denied", "never", received="yes", permanent=True)
        ledger.acted(call.key, once=self.declared == "at-most-once")
        if chance < 0.22:
            raise CallFailed("reset", "the connection was lost", received="maybe")
        if chance < 0.26:
            await asyncio.sleep(2 * TIMEOUT_S)
        if chance < 0.28:
            return Answer(b"no JSON", "200")
        return Answer(ANSWER, "200")

    async def verify(self, call: Call) -> Answer | None:
        await asyncio.sleep(self._outside.random.randint(0, SLOW_TICKS) * TICK_S)
        return Answer(ANSWER, "200") if self._outside.ledger.has_acted(call.key) else None

    async def probe(self) -> str:
        return "simulated"

    def pool(self) -> PoolState:
        return PoolState(0, 0, 0)

    async def close(self) -> None:
        """There is nothing to let go of."""
