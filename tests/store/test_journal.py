"""The journal over a store that can be held up and made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from knhk_workflow.errors import Busy, DeadlineExceeded, Fenced, StoreCorrupt, StoreError, StoreFull, StoreUnavailable
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.store import (
    META_SHARD,
    Batch,
    ExpectationFailed,
    Journal,
    JournalLimits,
    LogEntry,
    MemoryStore,
    Outcome,
    OutcomeUnknown,
    Unit,
    seal,
    seal_log,
)
from tests.inside import listening
from tests.simulation.loop import in_virtual_time
from tests.store.cases import KEYS, Case
from tests.store.faulty import Fault, FaultyStore
from tests.store.logs import follow


class Clock:
    def __init__(self) -> None:
        self.now = 1_000 * NS_PER_S

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
async def journal(store: FaultyStore, clock: Clock) -> AsyncIterator[Journal]:
    made = await opened(store, clock)
    yield made
    store.way.set()
    await made.close()


async def opened(store: FaultyStore, clock: Clock, limits: JournalLimits | None = None) -> Journal:
    journal = await Journal.open(store, clock, limits=limits)
    store.commits.clear()
    return journal


async def refused(future: asyncio.Future[int]) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await asyncio.wait_for(future, 60)
    return caught.value


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_unit_is_durable_when_its_future_says_so(store: FaultyStore, journal: Journal) -> None:
    case = Case("a")
    assert await journal.append(case.step()) == 1
    assert await case.stored_steps(store) == 1
    assert await journal.append(case.step()) == 2
    assert journal.position(0) == 2
    assert journal.position(META_SHARD) == 0


async def test_units_that_come_together_share_a_commit(store: FaultyStore, journal: Journal) -> None:
    cases = [Case(str(n)) for n in range(50)]
    assert await asyncio.gather(*(journal.append(case.step()) for case in cases)) == [1] * 50
    assert len(store.commits) == 1


async def test_units_gather_while_a_commit_is_on_its_way(store: FaultyStore, journal: Journal) -> None:
    store.way.clear()
    first = journal.append(Case("first").step())
    await turns()
    rest = []
    for n in range(10):
        rest.append(journal.append(Case(str(n)).step()))
        await turns(1)
    store.way.set()
    assert await first == 1
    assert await asyncio.gather(*rest) == [2] * 10


async def test_a_commit_is_bounded_in_units_and_bytes(store: FaultyStore, clock: Clock) -> None:
    journal = await opened(store, clock, JournalLimits(batch_units=4, batch_bytes=10_000))
    assert (
        await asyncio.gather(*(journal.append(Case(f"a{n}").step()) for n in range(10))) == [1] * 4 + [2] * 4 + [3] * 2
    )
    assert await asyncio.gather(*(journal.append(Case(f"b{n}").step(4_000)) for n in range(4))) == [4, 4, 5, 5]
    large = [journal.append(Case(f"c{n}").step(20_000)) for n in range(2)]
    assert await asyncio.gather(*large) == [6, 7]
    await journal.close()


def test_lingering_waits_for_company(clock: Clock) -> None:
    async def linger() -> list[int]:
        journal = await opened(FaultyStore(MemoryStore()), clock, JournalLimits(linger_s=0.05))
        first = journal.append(Case("a").step())
        await asyncio.sleep(0.01)
        second = journal.append(Case("b").step())
        await asyncio.sleep(0.06)
        third = journal.append(Case("c").step())
        found = [await first, await second, await third]
        await journal.close()
        return found

    assert in_virtual_time(linger()) == [1, 1, 2]


async def test_the_log_is_dense_and_chained_and_says_what_happened(
    store: FaultyStore, journal: Journal, clock: Clock
) -> None:
    case, other = Case("a"), Case("b")
    units = [case.step(), other.step(), case.step()]
    for unit in units:
        await journal.append(unit)
    await journal.append(Unit(0, "", "", 0, 0, b"", [], audits=(b"audit",)))
    links = [link async for link in follow(store, 0)]
    assert [link.position for link in links] == [1, 2, 3, 4]
    assert [entry for link in links for entry in link.record.entries] == [
        LogEntry(unit.tenant, unit.case_id, unit.first_sequence, unit.count, unit.digest) for unit in units
    ]
    assert links[3].record.audits == (b"audit",)
    assert {link.record.epoch for link in links} == {1}
    assert [link.position async for link in follow(store, 0, after=2)] == [3, 4]
    assert [link async for link in follow(store, 0, after=4)] == []


async def test_a_hole_and_a_changed_record_break_the_chain(store: FaultyStore, journal: Journal) -> None:
    for _ in range(4):
        await journal.append(Case(str(_)).step())
    key = KEYS.log(0, 2)
    record = await store.get(key)
    await store.inner.commit([(key, None)], [], True)
    with pytest.raises(StoreCorrupt, match="position 2"):
        [link async for link in follow(store, 0, after=1)]
    links = [link.record async for link in follow(store, 0, after=2)]
    await store.inner.commit([(key, seal_log(links[0])[0])], [], True)
    with pytest.raises(StoreCorrupt, match="chain"):
        [link async for link in follow(store, 0)]
    await store.inner.commit([(key, record)], [], True)
    assert len([link async for link in follow(store, 0)]) == 4


async def test_the_next_journal_goes_on_where_the_last_one_ended(store: FaultyStore, clock: Clock) -> None:
    case = Case("a")
    for expected in range(1, 4):
        journal = await opened(store, clock)
        assert await journal.append(case.step()) == expected
        await journal.close()
    assert [(link.position, link.record.epoch) async for link in follow(store, 0)] == [(1, 1), (2, 2), (3, 3)]


async def test_an_expectation_that_fails_fails_alone(store: FaultyStore, journal: Journal) -> None:
    stale, fine = Case("stale"), [Case("a"), Case("b")]
    await journal.append(stale.step())
    late = Case("stale").step()
    futures = [journal.append(fine[0].step()), journal.append(late), journal.append(fine[1].step())]
    error = await refused(futures[1])
    assert isinstance(error, ExpectationFailed)
    assert error.keys == (stale.keys.head,)
    assert [await futures[0], await futures[2]] == [2, 2]
    assert await stale.stored_steps(store) == 1


async def test_units_of_one_group_may_build_on_each_other(store: FaultyStore, journal: Journal) -> None:
    case = Case("a")
    assert await asyncio.gather(*(journal.append(case.step()) for _ in range(3))) == [1, 1, 1]
    assert await case.stored_steps(store) == 3


async def test_a_unit_falls_with_the_one_it_builds_on(store: FaultyStore, journal: Journal) -> None:
    taken = Case("a")
    await journal.append(taken.step())
    await journal.append(taken.step())
    late, fine = Case("a"), Case("b")
    futures = [journal.append(late.step()), journal.append(fine.step()), journal.append(late.step())]
    assert await futures[1] == 3
    assert isinstance(await refused(futures[0]), ExpectationFailed)
    assert isinstance(await refused(futures[2]), ExpectationFailed)
    assert await taken.stored_steps(store) == 2


async def test_of_two_units_with_contrary_expectations_the_first_wins(store: FaultyStore, journal: Journal) -> None:
    one, two = Case("a"), Case("a")
    futures = [journal.append(one.step()), journal.append(two.step())]
    assert await futures[0] == 1
    assert isinstance(await refused(futures[1]), ExpectationFailed)
    assert len(store.commits) == 1


def batch_of(journal: Journal, units: list[Unit]) -> asyncio.Future[list[Outcome]]:
    """Queue units together, as a batch command does; their outcomes, in order."""
    batch = Batch(asyncio.get_running_loop(), len(units))
    journal.put_all([(unit, batch.element(index)) for index, unit in enumerate(units)])
    return batch.told


async def test_a_batch_tells_each_units_outcome(store: FaultyStore, journal: Journal) -> None:
    await journal.append(Case("taken").step())
    outcomes = await batch_of(journal, [Case("a").step(), Case("taken").step(), Case("b").step()])
    assert outcomes[0] == outcomes[2] == 2
    assert isinstance(outcomes[1], ExpectationFailed)
    assert await batch_of(journal, []) == []


async def test_cancelling_changes_nothing_and_wedges_nothing(store: FaultyStore, journal: Journal) -> None:
    store.way.clear()
    cases = [Case(str(n)) for n in range(6)]
    on_its_way = journal.append(cases[0].step())
    await turns()
    queued = [journal.append(case.step()) for case in cases[1:4]]
    batch = batch_of(journal, [case.step() for case in cases[4:]])
    on_its_way.cancel()
    queued[1].cancel()
    batch.cancel()
    store.way.set()
    assert [await queued[0], await queued[2]] == [2, 2]
    assert [await case.stored_steps(store) for case in cases] == [1] * 6
    assert await journal.append(Case("next").step()) == 3


async def test_cancelled_waiters_of_a_failing_commit_wedge_nothing(store: FaultyStore, journal: Journal) -> None:
    store.faults = [Fault.REFUSED, Fault.LOST]
    for _ in range(2):
        store.way.clear()
        doomed = journal.append(Case("a").step())
        await turns()
        doomed.cancel()
        store.way.set()
        await journal.flush()
    assert await journal.append(Case("a").step()) == 1


async def test_a_full_queue_is_busy_and_queues_nothing(store: FaultyStore, clock: Clock) -> None:
    journal = await opened(store, clock, JournalLimits(queue_units=3, queue_bytes=100_000))
    store.way.clear()
    accepted = [journal.append(Case(str(n)).step()) for n in range(3)]
    with pytest.raises(Busy):
        journal.append(Case("x").step())
    with pytest.raises(Busy):
        batch_of(journal, [Case("x").step()])
    store.way.set()
    await asyncio.gather(*accepted)
    assert await journal.append(Case("x").step(200_000)) == 2  # alone, anything is accepted
    store.way.clear()
    large = journal.append(Case("y").step(90_000))
    with pytest.raises(Busy):
        journal.append(Case("z").step(90_000))
    store.way.set()
    await large
    await journal.close()


async def test_a_refused_write_fails_and_the_next_one_succeeds(store: FaultyStore, journal: Journal) -> None:
    store.faults = [Fault.REFUSED]
    assert isinstance(await refused(journal.append(Case("a").step())), StoreUnavailable)
    assert await journal.append(Case("a").step()) == 1


@pytest.mark.parametrize("outages", [0, 2])
async def test_unknown_but_applied_is_acknowledged(store: FaultyStore, journal: Journal, outages: int) -> None:
    store.faults = [Fault.APPLIED]
    store.outages = [StoreFull("full"), OSError("gone")][:outages]
    case, seen = Case("a"), list[int]()
    journal.on_commit(lambda shard, pos, units: seen.append(pos))
    assert await asyncio.wait_for(journal.append(case.step()), 60) == 1
    assert seen == [1]
    assert await journal.append(case.step()) == 2
    assert len(store.commits) == 2  # never sent twice
    assert [link.position async for link in follow(store, 0)] == [1, 2]


@pytest.mark.parametrize("outages", [0, 2])
async def test_unknown_and_lost_is_failed_and_never_sent_again(
    store: FaultyStore, journal: Journal, outages: int
) -> None:
    store.faults = [Fault.LOST]
    store.outages = [StoreUnavailable("not yet") for _ in range(outages)]
    error = await refused(journal.append(Case("a").step()))
    assert type(error) is StoreUnavailable
    assert len(store.commits) == 1
    assert await Case("a").stored_steps(store) == 0
    assert await journal.append(Case("a").step()) == 1


@pytest.mark.parametrize("outage_s", [0.0, 0.1, 7.0, 3_600.0])
def test_writing_goes_on_within_five_seconds_of_the_end_of_an_outage(clock: Clock, outage_s: float) -> None:
    """The promise; what the store needs to come back is not in it."""

    async def late() -> float:
        store = FaultyStore(MemoryStore())
        journal = await opened(store, clock)
        loop = asyncio.get_running_loop()
        store.faults = [Fault.APPLIED]
        store.outages = [StoreFull("full") for _ in range(10_000)]
        case = Case("a")
        written = journal.append(case.step())
        await asyncio.sleep(outage_s)
        store.outages.clear()
        over = loop.time()
        assert await written == 1
        assert await journal.append(case.step()) == 2
        took = loop.time() - over
        await journal.close()
        return took

    assert in_virtual_time(late()) <= 5


async def test_what_waits_behind_an_unknown_outcome_is_written_after_it(store: FaultyStore, journal: Journal) -> None:
    store.faults = [Fault.LOST]
    store.way.clear()
    lost = journal.append(Case("a").step())
    await turns()
    behind = journal.append(Case("b").step())
    store.way.set()
    assert isinstance(await refused(lost), StoreUnavailable)
    assert await behind == 1


async def test_during_an_outage_new_units_are_refused_with_its_reason(store: FaultyStore, journal: Journal) -> None:
    store.faults = [Fault.APPLIED]
    store.outages = [StoreFull("the volume is full")]
    first = journal.append(Case("a").step())
    await turns(10)
    with pytest.raises(StoreFull, match="volume"):
        journal.append(Case("b").step())
    assert isinstance(journal.outage(), StoreFull)
    assert await first == 1
    assert journal.outage() is None
    assert await journal.append(Case("b").step()) == 2


async def test_closing_during_an_outage_admits_that_it_does_not_know(store: FaultyStore, journal: Journal) -> None:
    store.faults = [Fault.APPLIED]
    store.outages = [StoreUnavailable("for ever") for _ in range(1_000)]
    store.way.clear()
    first = journal.append(Case("a").step())
    await turns()
    second = journal.append(Case("b").step())
    store.way.set()
    await turns(10)
    await asyncio.wait_for(journal.close(), 60)
    assert isinstance(await refused(first), OutcomeUnknown)
    assert isinstance(await refused(second), StoreUnavailable)


async def test_a_store_that_is_broken_for_good_refuses_for_good(store: FaultyStore, journal: Journal) -> None:
    store.faults = [Fault.LOST]
    store.outages = [StoreCorrupt("3 records are missing")]
    assert isinstance(await refused(journal.append(Case("a").step())), OutcomeUnknown)
    with pytest.raises(StoreCorrupt, match="missing"):
        journal.append(Case("b").step())


async def test_another_owner_fences_the_shard(store: FaultyStore, journal: Journal, clock: Clock) -> None:
    await journal.append(Case("a").step())
    other = await Journal.open(store, clock)
    futures = [journal.append(Case("b").step()), journal.append(Case("c").step())]
    for future in futures:
        assert isinstance(await refused(future), Fenced)
    with pytest.raises(Fenced):
        journal.append(Case("d").step())
    assert await other.append(Case("d").step()) == 2
    await other.close()


async def test_a_position_that_somebody_else_wrote_fences_the_shard(store: FaultyStore, journal: Journal) -> None:
    store.faults = [Fault.LOST]
    await store.inner.commit([(KEYS.log(0, 1), seal(b"somebody else's"))], [], True)
    assert isinstance(await refused(journal.append(Case("a").step())), Fenced)
    with pytest.raises(Fenced):
        journal.append(Case("b").step())


async def test_shards_that_are_not_held_are_refused(store: FaultyStore, clock: Clock) -> None:
    journal = await Journal.open(store, clock, shards=[META_SHARD])
    with pytest.raises(Fenced):
        journal.append(Case("a").step())
    await journal.close()


async def test_subscribers_hear_everything_once_in_order_and_before_the_waiters(
    store: FaultyStore, journal: Journal
) -> None:
    heard: list[tuple[int, int, list[str]]] = []
    problems = listening()

    def note(shard: int, position: int, units: Sequence[Unit]) -> None:
        heard.append((shard, position, [unit.case_id for unit in units]))

    def stumble(shard: int, position: int, units: Sequence[Unit]) -> None:
        raise ValueError("a watcher's mistake")

    journal.on_commit(stumble)
    journal.on_commit(note)
    await asyncio.gather(*(journal.append(Case(name).step()) for name in "ab"))
    assert heard == [(0, 1, ["a", "b"])]
    store.faults = [Fault.REFUSED]
    await refused(journal.append(Case("c").step()))
    await journal.append(Case("d").step())
    assert heard == [(0, 1, ["a", "b"]), (0, 2, ["d"])]
    assert len(problems) == 2


async def test_flush_waits_for_what_was_queued_before(store: FaultyStore, journal: Journal) -> None:
    await journal.flush()
    store.way.clear()
    futures = [journal.append(Case(str(n)).step()) for n in range(3)]
    flushed = asyncio.ensure_future(journal.flush())
    await turns()
    assert not flushed.done()
    store.way.set()
    await flushed
    assert all(future.done() for future in futures)


async def test_close_writes_what_is_queued_and_then_refuses(store: FaultyStore, journal: Journal) -> None:
    futures = [journal.append(Case(str(n)).step()) for n in range(3)]
    await journal.close()
    await journal.close()
    assert [future.result() for future in futures] == [1, 1, 1]
    with pytest.raises(StoreUnavailable, match="closed"):
        journal.append(Case("x").step())


async def test_a_mistake_of_our_own_leaves_nobody_waiting(store: FaultyStore) -> None:
    broken = False

    def clock() -> int:
        if broken:
            raise RuntimeError("no time")
        return 1

    journal = await Journal.open(store, clock)
    assert await journal.append(Case("a").step()) == 1
    broken = True
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    assert isinstance(await refused(journal.append(Case("b").step())), StoreUnavailable)
    with pytest.raises(StoreUnavailable, match="stopped"):
        journal.append(Case("c").step())
    await journal.close()


async def test_expired_requests_are_swept_with_their_index(store: FaultyStore, clock: Clock) -> None:
    journal = await opened(store, clock, JournalLimits(request_window_s=60))
    requests = [KEYS.request(0, "default", bytes([n]) * 32) for n in range(3)]
    await asyncio.gather(*(journal.append(Case(f"a{n}").step(request=requests[n])) for n in range(2)))
    clock.now += 30 * NS_PER_S
    await journal.append(Case("b").step(request=requests[2]))
    assert await journal.sweep_requests(0) == 0
    clock.now += 31 * NS_PER_S
    assert await journal.sweep_requests(0) == 2
    assert [await store.get(key) is None for key in requests] == [True, True, False]
    assert await journal.sweep_requests(0) == 0
    clock.now += 30 * NS_PER_S
    assert await journal.sweep_requests(0) == 1
    assert await store.scan(*KEYS.request_expiries(0), limit=10) == []
    await journal.close()


async def test_idle_costs_nothing(journal: Journal) -> None:
    await journal.append(Case("a").step())
    loop = asyncio.get_running_loop()
    await turns()
    ready, scheduled = loop._ready, loop._scheduled  # type: ignore[attr-defined]  # the loop's queues, read only
    assert not ready
    assert not scheduled


async def test_what_is_too_late_is_dropped_before_the_commit(
    store: FaultyStore, journal: Journal, clock: Clock
) -> None:
    store.way.clear()
    first = journal.append(Case("first").step())
    await turns()
    late, in_time, patient = Case("late"), Case("in time"), Case("patient")
    dropped = journal.append(msgspec.structs.replace(late.step(), deadline=clock.now + 1_000))
    kept = journal.append(msgspec.structs.replace(in_time.step(), deadline=clock.now + 1_000_000))
    waits = journal.append(patient.step())
    clock.now += 2_000
    store.way.set()
    assert [await each for each in (first, kept, waits)] == [1, 2, 2]
    with pytest.raises(DeadlineExceeded, match="nothing was changed"):
        await dropped
    assert await late.stored_steps(store.inner) == 0
    assert [await case.stored_steps(store.inner) for case in (in_time, patient)] == [1, 1]
    assert await journal.append(Case("late").step()) == 3, "the case may be written by whoever comes next"
