"""What must be there after a fault: everything acknowledged, nothing twice, nothing in halves."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from knhk_workflow import CaseView, NotFound, StateStore, StoreError, WorkflowEngine, WorkflowError
from knhk_workflow.runtime.integrity import examine
from knhk_workflow.runtime.records import COMMITS
from knhk_workflow.store import Keyspace, Store
from knhk_workflow.store.leveldb import LevelDBStore
from tests.sweep.workload import CASES, LIMITS, SPEC, STEPS, carry_out

Ending = tuple[str, bytes, tuple[tuple[str, bytes], ...]]
"""How a case ends: state, data, and its events without their times."""


@dataclass(slots=True)
class Verdict:
    """What is wrong after one fault."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged and not there."""
    twice: list[str] = field(default_factory=list)
    """There more than once."""
    partial: list[str] = field(default_factory=list)
    """There in halves, or not fitting together."""
    refused: list[str] = field(default_factory=list)
    """The store, or an operation on it, does not go on."""

    @property
    def problems(self) -> list[str]:
        """All of it, named."""
        kinds = (("lost", self.lost), ("twice", self.twice), ("partial", self.partial), ("refused", self.refused))
        return [f"{kind}: {what}" for kind, some in kinds for what in some]


async def ending_of(engine: WorkflowEngine, number: int) -> Ending:
    """How a case stands."""
    case: CaseView = await engine.get_case(f"case-{number}")
    events: list[tuple[str, bytes]] = []
    while len(events) < case.sequence:
        page = await engine.get_case_history(case.case_id, after_sequence=len(events), page_size=1_000)
        events += [(event.event_type, event.data) for event in page.items]
    return case.state, case.data, tuple(events)


async def finish(engine: WorkflowEngine) -> list[Ending]:
    """Carry the workload's script out to its end, whatever of it is there already."""
    await engine.register_workflow(SPEC)

    async def case(number: int) -> Ending:
        for index in range(len(STEPS)):
            await carry_out(engine, number, index)
        return await ending_of(engine, number)

    return list(await asyncio.gather(*(case(number) for number in range(CASES))))


async def reference(directory: Path) -> list[Ending]:
    """How the cases end when nothing happens."""
    store = await LevelDBStore.open(str(directory), limits=LIMITS)
    async with WorkflowEngine(StateStore.over(store)) as engine:
        return await finish(engine)


async def judge(directory: Path, acknowledged: Counter[str], expected: list[Ending]) -> Verdict:
    """Open what a fault left, compare it with what was acknowledged (steps by case; "" counts the workflow), carry the
    rest of the script out and compare the end."""
    verdict = Verdict()
    try:
        store = await LevelDBStore.open(str(directory), limits=LIMITS)
    except (StoreError, NotFound) as error:
        verdict.refused.append(f"the store does not open: {error!r}")
        if acknowledged:
            verdict.lost.append(f"{sum(acknowledged.values())} acknowledged operations with it")
        return verdict
    engine = WorkflowEngine(StateStore.over(store))
    try:
        await _records(store, acknowledged, verdict)
        await _whole(store, verdict)
        await engine.open()
        if acknowledged[""]:
            await engine.get_workflow("order")
        endings = await finish(engine)
        verdict.partial += [
            f"case-{number} ends otherwise: {_difference(ending, wanted)}"
            for number, (ending, wanted) in enumerate(zip(endings, expected, strict=True))
            if ending != wanted
        ]
        await _whole(store, verdict)
    except NotFound as error:
        verdict.lost.append(str(error))
    except WorkflowError as error:
        verdict.refused.append(f"the rest of the work: {error!r}")
    finally:
        await engine.close()
    return verdict


async def _records(store: Store, acknowledged: Counter[str], verdict: Verdict) -> None:
    """Each case has the script's operations in order: those acknowledged, and at most the one that was under way."""
    keys = Keyspace(store.shards)
    for number in range(CASES):
        case_id = f"case-{number}"
        done = acknowledged[case_id]
        rows = await store.scan(*keys.case_records("default", case_id), limit=1_000)
        found = [COMMITS.read(key, value).request_id for key, value in rows]
        verdict.twice += [request for request, count in Counter(found).items() if count > 1]
        if len(found) < done:
            verdict.lost.append(f"{case_id}: {done} operations were acknowledged, {len(found)} are there")
        if found != [f"{case_id}/{index}" for index in range(len(found))] or len(found) > done + 1:
            verdict.partial.append(f"{case_id}: {done} acknowledged, found {found}")


async def _whole(store: Store, verdict: Verdict) -> None:
    moment = await store.snapshot()
    try:
        examination = await examine(moment, store.shards)
    finally:
        await moment.close()
    verdict.partial += [f"{finding.code}: {finding.message}" for finding in examination.findings]


def _difference(ending: Ending, wanted: Ending) -> str:
    if ending[2] != wanted[2]:
        return f"events {msgspec.json.encode([kind for kind, _ in ending[2]]).decode()}"
    return f"{ending[0]} {ending[1][:80]!r} instead of {wanted[0]} {wanted[1][:80]!r}"
