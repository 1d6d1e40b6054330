"""Simulated workers: they take items by lease, end them, keep them, give them back, or vanish with them.

What they see must be true: an item comes fresh once in all lives of the engine, since that is an event of its case; a
result of a lease that is over is refused; and nobody else has an item while its lease lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Final

from knhk_workflow import (
    CallMeta,
    CompleteRequest,
    FailRequest,
    LeasedItem,
    Stale,
    WorkflowEngine,
    WorkflowError,
    WorkItemView,
    WorkSession,
    WorkSubscription,
)
from knhk_workflow.model.units import NS_PER_S
from tests.simulation.disk import TICK_S
from tests.simulation.nets import VARIABLES

LEASES_S: Final = (0.1, 0.3, 1.0)  # virtual seconds; the longest outage lasts longer
PAUSE_S: Final = 0.5
Report = Callable[[str], None]


def task_ids(document: Mapping[str, object]) -> Iterator[str]:
    """The tasks of a document, those of its sub-nets too."""
    for key, value in document.items():
        if key == "tasks" and isinstance(value, Mapping):
            yield from value
        elif key == "nets" and isinstance(value, Mapping):
            for net in value.values():
                yield from task_ids(net)


class Tokens:
    """The tokens that workers of an episode got."""

    def __init__(self, report: Report) -> None:
        self._fresh: set[tuple[str, str]] = set()
        self.report = report

    def got(self, tenant: str, item: LeasedItem) -> None:
        """An item came."""
        token = tenant, item.item.item_id
        if not item.redelivered and token in self._fresh:
            self.report(f"twice: {token} was given out twice")
        self._fresh.add(token)
        if item.item.state != "started":
            self.report(f"differs: {token} was given out as {item.item.state}")


class Worker:
    """One worker of one tenant, named or not."""

    def __init__(self, number: int, tenant: str, tasks: tuple[str, ...], tokens: Tokens, random: Random) -> None:
        self._random = random
        self._tokens = tokens
        self._tenant = tenant
        name = f"worker-{number}" if random.random() < 0.5 else ""
        lease = round(random.choice(LEASES_S) * NS_PER_S)
        self._wanted = WorkSubscription(tasks, random.choice((1, 3, 20)), lease, name)
        self._meta = CallMeta(tenant=tenant, principal=f"worker-{number}", method="work")

    async def run(self, engine: Callable[[], WorkflowEngine], goes_on: Callable[[], bool]) -> None:
        """Connect again and again, as long as the episode goes on."""
        while goes_on():
            try:
                session = await engine().open_work(self._wanted, meta=self._meta)
            except WorkflowError:
                await asyncio.sleep(PAUSE_S)
                continue
            try:
                await self._work(session, goes_on)
            finally:
                await session.close()
            await asyncio.sleep(self._random.randint(0, 20) * TICK_S)

    async def _work(self, session: WorkSession, goes_on: Callable[[], bool]) -> None:
        random, stale = self._random, list[str]()
        stays = random.randint(1, 30)
        while goes_on() and session.error is None and stays:
            stays -= 1
            try:
                async with asyncio.timeout(PAUSE_S):
                    await session.news.wait()
            except TimeoutError:
                continue
            delivery = session.take()
            for item in delivery.items:
                self._tokens.got(self._tenant, item)
            stale += delivery.revoked
            done = [
                CompleteRequest(each.item.item_id, {name: random.randint(0, 4) for name in VARIABLES})
                for each in delivery.items
            ]
            random.shuffle(done)
            kept = [done.pop() for _ in range(len(done)) if random.random() < 0.3]
            if random.random() < 0.5:
                await asyncio.sleep(random.randint(0, 40) * TICK_S)
            for each in kept:
                await self._keep(session, each.item_id)
            await session.complete(done)
            if stale and random.random() < 0.5:
                await self._late(session, stale.pop())

    async def _keep(self, session: WorkSession, item_id: str) -> None:
        """Longer, back, failed, or forgotten."""
        choice = self._random.random()
        if choice < 0.5:
            try:
                session.extend(item_id, None if choice < 0.25 else 0)
            except Stale:
                return
        elif choice < 0.75:
            await session.fail([FailRequest(item_id, "E1", retry_after=self._random.choice((None, 0, NS_PER_S)))])

    async def _late(self, session: WorkSession, item_id: str) -> None:
        """A result of what was taken away: never taken."""
        [answer] = await session.complete([CompleteRequest(item_id)])
        if isinstance(answer, WorkItemView):
            self._tokens.report(f"twice: {item_id} was taken away, and its result was taken")
