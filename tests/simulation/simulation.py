"""One run of the simulation: episodes, each with a fresh disk, several lives of an engine, and its own mix of faults.

An episode draws what is unusual about it (which faults and how often, how small the engine's bounds are, how many
callers), lets callers work, crashes and restarts the engine under them, and at its end calms everything down: then
every cascade must come to rest, every case must answer, and the bytes are read again from the first.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Final

import msgspec

from knhk_workflow import (
    CallMeta,
    CaseView,
    EngineLimits,
    JournalLimits,
    SeededIds,
    StateStore,
    StoreError,
    StoreUnavailable,
    WorkflowEngine,
    WorkflowError,
    WorkItemFilter,
    WorkItemView,
)
from knhk_workflow.core import settle
from knhk_workflow.core.commands import ENDED
from knhk_workflow.runtime import live, query
from tests.simulation.clients import Asked, Client
from tests.simulation.disk import COMMIT_FAULTS, FAULTS, Disk, SimulatedStore
from tests.simulation.ledger import Ledger, Request, Seen
from tests.simulation.loop import SimulatedClock, SimulationLoop, Stalled
from tests.simulation.nets import FIXED, Document, random_document
from tests.simulation.workers import Tokens, Worker, task_ids

EPISODE_STEPS: Final = 1_000  # small enough that reading everything from the start stays cheap
WAIT_MAX_S: Final = 300.0  # virtual seconds that a call may take; the longest outage of the simulation is some seconds
CALM_S: Final = 120.0  # virtual seconds in which everything must come to rest
READ_EVERYTHING: Final = 0.25  # after a crash; always at the end of an episode, which sees the same bytes
PATROL_S: Final = 20.0
TENANTS: Final = ("default", "other")


class Report(msgspec.Struct):
    """What a run found. `episode` is the last one; a violation was found there, after `at_step` steps of it."""

    steps: int = 0
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    violations: list[str] = msgspec.field(default_factory=list)
    at_step: int = 0
    commits: int = 0
    events: int = 0
    lives: int = 0
    episode: int = 0
    trace: int = 0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)

    def line(self) -> str:
        """The one line."""
        return (
            f"{self.steps} steps, {sum(self.faults.values())} faults, {len(self.violations)} violations, "
            f"{self.commits} commits, {self.events} events, {self.lives} lives, trace {self.trace:08x}"
        )


def simulate(
    seed: int,
    steps: int,
    faults: frozenset[str] = frozenset(FAULTS),
    tell: Callable[[str], None] | None = None,
    episode: int = 0,
) -> Report:
    """Run episodes until `steps` commands were executed, or something is wrong. The same arguments, the same run; and
    each episode is the same whether or not those before it were run."""
    report = Report(episode=episode)
    while report.steps < steps:
        Episode(seed, report.episode, min(EPISODE_STEPS, steps - report.steps), faults, report, tell).run()
        if report.violations:
            break
        report.episode += 1
    return report


@contextmanager
def knobs(random: Random) -> Iterator[None]:
    """Some of the engine's inner bounds, much smaller than in production, so that their edges are met often."""
    chosen = (
        (settle, "SLICE_FIRINGS", (2, 5, 20, 200)),
        (settle, "SETTLE_FIRINGS_MAX", (30, 60, 120)),
        (live, "SNAPSHOT_RECORDS", (1, 3, 8, 64)),
        (live, "REPLAY_PAGE", (1, 2, 512)),
        (query, "LOG_PAGE", (1, 3, 64)),
    )
    before = [(module, name, getattr(module, name)) for module, name, _ in chosen]
    for module, name, values in chosen:
        setattr(module, name, random.choice(values))
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


class Episode:
    """One disk and the lives of the engine on it."""

    engine: WorkflowEngine

    def __init__(
        self,
        seed: int,
        number: int,
        steps: int,
        faults: frozenset[str],
        report: Report,
        tell: Callable[[str], None] | None,
    ) -> None:
        self._random = random = Random(f"{seed}/{number}")
        self._report = report
        self._tell = tell
        self._steps_wanted = steps
        self._steps = 0
        self.faults = report.faults
        self.clock = SimulatedClock()
        self.disk = Disk(random.choice((1, 1, 3)))
        self.ledger = Ledger(self.disk)
        self.dying = False
        self._draining = False
        self._chances = _chances(random, faults)
        self.cancel = self._chances.get("cancel", 0.0)
        self.deadline = self._chances.get("deadline", 0.0)
        self._ids = SeededIds(random.getrandbits(32))
        self._limits = EngineLimits(
            cached_cases=random.choice((3, 20, 1_000, 1_000)),
            journal=JournalLimits(
                batch_units=random.choice((1, 3, 1_024)),
                queue_units=random.choice((2, 8_192, 8_192)),
                linger_s=random.choice((0.0, 0.0, 0.002)),
            ),
        )
        self._names = 0
        self._documents: list[Document] = list(random.sample(FIXED, random.randint(3, len(FIXED))))
        self._documents += [random_document(random, index) for index in range(random.randint(0, 4))]
        self._specs = [str(document["id"]) for document in self._documents]
        self._registered: set[tuple[str, str]] = set()
        self._asked: dict[str, Asked] = {}
        self._answers: dict[tuple[str, Request], CaseView | WorkItemView] = {}
        self._open: dict[str, list[Seen]] = {}
        self._open_at = -1
        self._clients = [
            Client(self, index, random.choice(TENANTS[: random.randint(1, 2)]), Random(random.getrandbits(64)))
            for index in range(random.choice((1, 2, 4, 8)))
        ]
        self._watched: dict[tuple[str, str], int] = {}
        self._watching = random.random() < 0.3
        self._workers = self._draw_workers(Random(f"{seed}/{number}/workers"))
        self._resume = query.resume_token(dict.fromkeys(range(self.disk.shards), (0, 0)))
        self._store: SimulatedStore | None = None
        self._crashed: asyncio.Future[None] | None = None
        self._loop = SimulationLoop(self.clock, Random(random.getrandbits(64)))
        self._loop.set_exception_handler(self._unhandled)

    def run(self) -> None:
        """All of it; what is wrong is in the report."""
        with knobs(self._random):
            asyncio.set_event_loop(self._loop)
            try:
                self._loop.run_until_complete(self._lives())
            except Stalled as stalled:
                waiting = "; ".join(client.asking for client in self._clients if client.asking)
                self.ledger.report(f"wedged: {stalled}; unanswered: {waiting or 'nothing'}")
            finally:
                self.dying = True
                self._end_all()
                self._loop.close()
                asyncio.set_event_loop(None)
        self._report.events += self.ledger.events
        if self.ledger.violations and not self._report.violations:
            self._report.at_step = self._steps
            self._report.violations = list(self.ledger.violations)

    # -- for the callers ----------------------------------------------------------------------------------------------

    def goes_on(self) -> bool:
        """Whether callers shall ask another thing."""
        return self._steps < self._steps_wanted and not self._draining and not self.ledger.violations

    def next_trace(self, asked: Asked) -> str:
        """A trace id for one call."""
        trace = f"t{len(self._asked)}"
        self._asked[trace] = asked
        return trace

    def asked_as(self, trace: str) -> Asked | None:
        """What was asked under a trace id."""
        return self._asked.get(trace)

    def new_name(self) -> str:
        """A case id that nobody has used."""
        self._names += 1
        return f"k{self._names}"

    def some_name(self) -> str:
        """A case id that somebody may have used."""
        return f"k{self._random.randint(1, self._names + 1)}"

    def some_spec(self, random: Random) -> str:
        """A registered workflow; rarely one that is not."""
        return "absent" if random.random() < 0.005 else random.choice(self._specs)

    def open_cases(self, tenant: str) -> list[Seen]:
        """Cases of a tenant that have not ended, as of a few steps ago."""
        if self._open_at != self._steps // 8:
            self._open_at = self._steps // 8
            self._open = {name: [] for name in TENANTS}
            for (owner, _), seen in self.ledger.cases.items():
                if seen.case.state not in ENDED:
                    self._open[owner].append(seen)
        return self._open[tenant]

    def stepped(self, who: str, asked: Asked, request_id: str, outcome: str) -> None:
        """One command was executed."""
        report = self._report
        report.steps += 1
        self._steps += 1
        report.outcomes[outcome if outcome != "ok" else f"ok {asked.method}"] += 1
        line = f"{who} {asked.method} {asked.case_id} {request_id} {outcome}"
        report.trace = zlib.crc32(line.encode(), report.trace)
        if self._tell is not None:
            self._tell(f"{self._steps:7d} {self.clock.seconds():9.3f} {line} {asked.arguments} {asked.named}")

    def remember(self, trace: str, request: Request, answer: CaseView | WorkItemView) -> None:
        """What a request id was answered with."""
        self._answers[trace, request] = answer

    def compare(self, trace: str, request: Request, answer: CaseView | WorkItemView) -> None:
        """A repeated request must be answered as the first time: the same item, the same case (as it is by now)."""
        before = self._answers.get((trace, request))
        if before is None:
            return
        if isinstance(before, WorkItemView):
            if before != answer:
                self.ledger.report(f"differs: {request} was answered with {answer}, the first time with {before}")
        elif (
            not isinstance(answer, CaseView)
            or (before.case_id, before.created_at)
            != (
                answer.case_id,
                answer.created_at,
            )
            or answer.sequence < before.sequence
        ):
            self.ledger.report(f"differs: {request} was answered with another case than the first time")

    # -- lives --------------------------------------------------------------------------------------------------------

    async def _lives(self) -> None:
        patrol = self._loop.create_task(self._patrol())
        while not self.ledger.violations:
            ended = await self._life()
            if ended:
                break
            patrol.cancel()
            patrol = self._loop.create_task(self._patrol())
        patrol.cancel()

    async def _life(self) -> bool:
        """From opening to a crash or a clean end; true when the episode is over."""
        self._report.lives += 1
        crashed = self._crashed = self._loop.create_future()
        await self._or_crash(self._open_engine(), crashed)
        if crashed.done():
            await self._bury()
            return False
        working = [self._loop.create_task(client.run()) for client in self._clients]
        if self._watching:
            self._loop.create_task(self._watch(self.engine))
        for worker in self._workers:
            self._loop.create_task(worker.run(lambda: self.engine, self.goes_on))
        restarts = self._chances.get("restart", 0.0)
        while working and not crashed.done():
            pause = self._random.expovariate(restarts) if restarts else None
            done, _ = await asyncio.wait({crashed, *working}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            working = [task for task in working if not task.done()]
            if not done and not crashed.done() and working:
                await self._or_crash(self._restart(), crashed)
        if not crashed.done():
            await self._or_crash(self._come_to_rest(), crashed)
        if crashed.done():
            await self._bury()
            return False
        return True

    def _unfinished(self) -> bool:
        """Whether something has to happen by itself yet."""
        return bool(self._going() or self._unwatched() or self._waiting() or self._leased())

    def _leased(self) -> list[tuple[str, str]]:
        """Cases with work in the hands of workers, who are all gone by now."""
        return [
            name
            for name, seen in self.ledger.cases.items()
            if seen.case.state not in ENDED
            and any(run.state == "started" and run.lease for _, run in seen.case.open_work())
        ]

    async def _or_crash(self, work: object, crashed: asyncio.Future[None]) -> None:
        """Do something unless the crash comes first. Errors of it are the run's."""
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]  # a coroutine
        await asyncio.wait({task, crashed}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()

    async def _open_engine(self) -> None:
        """A new engine on the surviving bytes, with the workflows registered; outages make that take some tries."""
        while True:
            if self._crashed is not None and self._crashed.done():
                return
            self._store = SimulatedStore(
                self.disk,
                self._random,
                self._chances,
                self.faults,
                self._written,
                self._crash,
                self.ledger.report,
                self._note if self._tell is not None else None,
            )
            engine = WorkflowEngine(StateStore.over(self._store), clock=self.clock, ids=self._ids, limits=self._limits)
            try:
                await engine.open()
                await self._register(engine)
            except StoreError as error:
                if not isinstance(error, StoreUnavailable | OSError) and "unknown" not in str(error):
                    self.ledger.report(f"differs: the engine does not open: {error!r}")
                await engine.close()
                await asyncio.sleep(0.1)
                continue
            except OSError:
                await engine.close()
                continue
            self.engine = engine
            return

    async def _register(self, engine: WorkflowEngine) -> None:
        for tenant in TENANTS:
            meta = CallMeta(tenant=tenant)
            for document in self._documents:
                name = (tenant, str(document["id"]))
                again = name in self._registered
                if again and self._random.random() < 0.9:
                    continue
                view = await engine.register_workflow(document, allow_unsound=True, meta=meta)
                if view.version != 1 or (again and view.created):
                    self.ledger.report(f"lost: workflow {name} was registered again as version {view.version}")
                self._registered.add(name)

    async def _restart(self) -> None:
        """A clean end in the middle of everything, and a new engine; callers go on and are refused meanwhile."""
        self.faults["restart"] += 1
        await self.engine.close()
        await self._open_engine()

    def _draw_workers(self, random: Random) -> list[Worker]:
        """Workers for some of the tasks; in most episodes none, so that callers do everything."""
        tasks = sorted({task for document in self._documents for task in task_ids(document)})
        if random.random() < 0.6 or not tasks:
            return []
        tokens = Tokens(self.ledger.report)
        return [
            Worker(index, random.choice(TENANTS), tuple(random.sample(tasks, -(-len(tasks) // 2))), tokens, random)
            for index in range(random.choice((1, 2, 5)))
        ]

    def _crash(self) -> None:
        if self._crashed is not None and not self._crashed.done():
            self._crashed.set_result(None)

    async def _bury(self) -> None:
        """After a crash: nothing of that life runs on, and what was not durable is gone."""
        self.dying = True
        if self._store is not None:
            self._store.die()
        await self._cancel_all()
        self.dying = False
        if self.disk.lose_power():
            self.ledger.reread()
        if self._random.random() < READ_EVERYTHING:
            self.ledger.read_everything()
        self._note(f"crashed, {len(self.disk.bytes)} keys survive")

    async def _cancel_all(self) -> None:
        own = self._loop.unfinished()
        for task in own:
            task.cancel()
        if own:
            await asyncio.wait(own)

    def _end_all(self) -> None:
        """After the run: let what is left finish, so that the next episode starts clean."""
        if self._store is not None:
            self._store.die()
        cancelling = self._cancel_all()
        try:
            self._loop.run_until_complete(cancelling)
        except Stalled:
            cancelling.close()  # reported already: what did not end before does not end now

    async def _come_to_rest(self) -> None:
        """No more faults: cascades end, every case answers, work lists are complete, and the bytes are whole."""
        store = self._store
        assert store is not None
        store.calm = True
        engine = self.engine
        until = self.clock.seconds() + CALM_S
        # Virtual seconds cost nothing, and no event tells when the ledger is content.
        while self._unfinished() and self.clock.seconds() < until:  # noqa: ASYNC110
            await asyncio.sleep(1.0)
        for tenant, case_id in self._leased()[:3]:
            self.ledger.report(f"lost: a lease of {tenant}/{case_id} does not end, and nobody has it")
        for tenant, case_id in self._waiting()[:3]:
            self.ledger.report(f"lost: a timer of {tenant}/{case_id} does not fire")
        for tenant, case_id in self._going()[:3]:
            self.ledger.report(f"wedged: the cascade of {tenant}/{case_id} does not go on")
        for tenant in TENANTS:
            meta = CallMeta(tenant=tenant)
            listed: set[str] = set()
            token = ""
            while True:
                page = await engine.list_work_items(WorkItemFilter(), page_size=7, page_token=token, meta=meta)
                listed.update(item.item_id for item in page.items)
                token = page.next_token
                if not token:
                    break
            wanted = {
                f"{activation.number}.{run.number}.{run.attempt}@{case_id}"
                for (owner, case_id), seen in self.ledger.cases.items()
                if owner == tenant
                for activation, run in seen.case.open_work()
            }
            if listed != wanted:
                self.ledger.report(
                    f"differs: the work list of {tenant} lacks {wanted - listed}, invents {listed - wanted}"
                )
        for name, seen in list(self.ledger.cases.items()):
            try:
                view = await engine.get_case(name[1], meta=CallMeta(tenant=name[0]))
            except WorkflowError as error:
                self.ledger.report(f"lost: {name} cannot be read: {error}")
                continue
            self.ledger.shown(view)
            if view.sequence != seen.case.sequence:
                self.ledger.report(
                    f"lost: {name} is shown at {view.sequence}, it is written up to {seen.case.sequence}"
                )
            self.ledger.compare_live(engine, name)
        for name in self._unwatched()[:3]:
            self.ledger.report(f"lost: watching showed {name} up to {self._watched.get(name, 0)} only")
        await engine.close()
        self.ledger.read_everything()

    def _going(self) -> list[tuple[str, str]]:
        """Cases whose cascade is paused and should not be."""
        return [name for name, seen in self.ledger.cases.items() if seen.case.ready and seen.case.state == "running"]

    def _waiting(self) -> list[tuple[str, str]]:
        """Running cases with timers; those of the simulation are all due before long."""
        return [name for name, seen in self.ledger.cases.items() if seen.case.timers and seen.case.state == "running"]

    def _unwatched(self) -> list[tuple[str, str]]:
        """Cases of the watched tenant whose end was not shown."""
        if not self._watching:
            return []
        return [
            name
            for name, seen in self.ledger.cases.items()
            if name[0] == TENANTS[0] and self._watched.get(name, 0) != seen.case.sequence
        ]

    async def _watch(self, engine: WorkflowEngine) -> None:
        """Follow everything of one tenant, over crashes and restarts, by resume token."""
        meta = CallMeta(tenant=TENANTS[0])
        while True:
            try:
                async for event, token in engine.watch_cases(resume_token=self._resume, meta=meta):
                    name = (TENANTS[0], event.case_id)
                    last = self._watched.get(name, 0)
                    if event.sequence != last + 1:
                        self.ledger.report(f"lost: watching {name} went from event {last} to {event.sequence}")
                    self._watched[name] = event.sequence
                    self._resume = token
            except (StoreUnavailable, OSError):
                pass  # an outage or a closed engine: once more, later
            await asyncio.sleep(0.05)
            engine = self.engine

    async def _patrol(self) -> None:
        """Nobody waits for ever."""
        while True:
            await asyncio.sleep(PATROL_S)
            for client in self._clients:
                if client.asking and self.clock.seconds() - client.since > WAIT_MAX_S:
                    self.ledger.report(f"wedged: no answer for {WAIT_MAX_S} s: {client.asking}")
                    self._crash()

    def _note(self, what: str) -> None:
        if self._tell is not None:
            self._tell(f"        {self.clock.seconds():9.3f} {what}")

    def _written(self, writes: object) -> None:
        self._report.commits += 1
        self.ledger.written(writes)  # type: ignore[arg-type]  # the store's writes

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        if not self.dying:
            self.ledger.report(f"fault: {context.get('message')}: {context.get('exception')!r}")


def _chances(random: Random, faults: frozenset[str]) -> dict[str, float]:
    """How often each kind of fault happens in an episode; most episodes have only some of them."""
    chances: dict[str, float] = {}
    for kind in FAULTS:
        if kind not in faults or random.random() < 0.4:
            random.random()
            continue
        if kind == "crash":
            chances[kind] = random.choice((0.001, 0.004))
        elif kind in COMMIT_FAULTS:
            chances[kind] = random.choice((0.002, 0.01, 0.05))
        elif kind == "slow":
            chances[kind] = random.choice((0.02, 0.2, 0.6))
        elif kind == "restart":
            chances[kind] = random.choice((0.2, 1.0))  # per virtual second
        elif kind == "outage":
            chances[kind] = 1.0
        else:
            chances[kind] = random.choice((0.005, 0.03, 0.1))
    return chances
