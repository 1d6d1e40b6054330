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
    InstancesView,
    JournalLimits,
    SeededIds,
    StateStore,
    StoreCorrupt,
    StoreError,
    StoreFormat,
    StoreUnavailable,
    WorkflowEngine,
    WorkflowError,
    WorkItemFilter,
)
from knhk_workflow.core import settle
from knhk_workflow.core.commands import ENDED
from knhk_workflow.model.net import Model
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.model.verify import VerifyBudget
from knhk_workflow.runtime import definitions, live, query
from knhk_workflow.runtime.records import MESSAGES, Definition, MessageRecord
from tests.simulation.clients import NO_EVENT, Answer, Asked, Client
from tests.simulation.disk import Disk, SimulatedStore
from tests.simulation.fates import FAULTS, PER_CLIENT, Fates, Strike
from tests.simulation.ledger import Ledger, Request, Seen
from tests.simulation.loop import SimulatedClock, SimulationLoop, Stalled
from tests.simulation.nets import CALLING, CALLING_IDS, FIXED, PATTERN_DOCUMENTS, Document, random_document
from tests.simulation.outside import Outside
from tests.simulation.workers import Tokens, Worker, task_ids

EPISODE_STEPS: Final = 1_000  # small enough that reading everything from the start stays cheap
WAIT_MAX_S: Final = 300.0  # virtual seconds that a call may take; the longest outage of the simulation is some seconds
REMEMBERED_MAX: Final = 1_000  # documents; most are random ones that come once
CALM_S: Final = 120.0  # virtual seconds in which everything must come to rest
LATE_S: Final = 2.0  # virtual seconds after which a due timer of a calm engine is late
READ_EVERYTHING: Final = 0.25  # after a crash, and at the end of an episode, which sees the same bytes
PATROL_S: Final = 20.0
RELIEF_S: Final = 60.0  # virtual seconds that a call waits until reads are not refused any more
TENANTS: Final = ("default", "other")
STATES: Final = ("created", "running", "suspended", "completed", "cancelled", "failed")
CLOCK_STEPS_S: Final = (-3_600, -30, -1, 1, 30, 3_600)  # by how much the wall clock is another after a restart
VERIFICATION: Final = VerifyBudget(200, 2_000, 100)  # verdicts are of no interest here, and take long


class Plan(msgspec.Struct, frozen=True):
    """One episode: `number` of a seed, `steps` commands long.

    `commands`: the numbers of the commands that each caller executes, None = as the seed has it. `strikes`: the faults
    that happen, as (kind, place), None likewise. Both are how a failing episode is made smaller.
    """

    seed: int
    number: int
    steps: int = EPISODE_STEPS
    faults: frozenset[str] = frozenset(FAULTS)
    commands: tuple[tuple[int, tuple[int, ...]], ...] | None = None
    strikes: frozenset[Strike] | None = None


class Outcome(msgspec.Struct):
    """What an episode was, and what was found."""

    number: int
    steps: int = 0
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    violations: list[str] = msgspec.field(default_factory=list)
    commits: int = 0
    events: int = 0
    lives: int = 0
    trace: int = 0
    hashed: int = 0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    met: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    commands: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """Every command that was begun, as (caller, number), when something was wrong."""
    strikes: list[Strike] = msgspec.field(default_factory=list)
    """Likewise every fault."""


def simulate(plan: Plan, tell: Callable[[str], None] | None = None) -> Outcome:
    """Run an episode. The same plan is the same run."""
    with remembered():
        return Episode(plan, tell).run()


_CHECKED: Final[dict[bytes, definitions.Parsed]] = {}
_VERIFIED: Final[dict[bytes, definitions.Verified]] = {}
_COMPILED: Final[dict[tuple[bytes, int], Model]] = {}


@contextmanager
def remembered() -> Iterator[None]:
    """What depends on a document alone is worked out once per process: parsing, verifying, compiling it. Every life of
    an engine would do it again, and it is not what is looked for here."""
    check, verified, recompiled = definitions.check, definitions.verified, definitions.recompiled

    def check_once(document: definitions.Document, form: str) -> definitions.Parsed:
        key = msgspec.json.encode(document)
        if key not in _CHECKED:
            _CHECKED[key] = check(document, form)
        return _CHECKED[key]

    def verify_once(parsed: definitions.Parsed, budget: VerifyBudget) -> definitions.Verified:
        if parsed.digest not in _VERIFIED:
            _VERIFIED[parsed.digest] = verified(parsed, budget)
        return _VERIFIED[parsed.digest]

    def compile_once(definition: Definition) -> Model:
        key = (definition.digest, definition.version)
        if key not in _COMPILED:
            _COMPILED[key] = recompiled(definition)
        return _COMPILED[key]

    definitions.check, definitions.verified, definitions.recompiled = check_once, verify_once, compile_once
    try:
        yield
    finally:
        definitions.check, definitions.verified, definitions.recompiled = check, verified, recompiled
        for kept in (_CHECKED, _VERIFIED, _COMPILED):
            if len(kept) > REMEMBERED_MAX:
                kept.clear()


@contextmanager
def knobs(random: Random) -> Iterator[None]:
    """Some of the engine's inner bounds, much smaller than in production, so that their edges are met often."""
    chosen = (
        (settle, "SLICE_FIRINGS", (2, 5, 20, 200)),
        (settle, "SETTLE_FIRINGS_MAX", (30, 60, 120)),
        (live, "SNAPSHOT_RECORDS", (1, 3, 8, 64)),
        (live, "REPLAY_PAGE", (1, 2, 512, 512, 512, 512)),
        (query, "LOG_PAGE", (1, 3, 64, 64)),
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

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None) -> None:
        self._plan = plan
        self._random = random = Random(f"{plan.seed}/{plan.number}")
        self.outcome = Outcome(plan.number)
        self._tell = tell
        self.fates = Fates(random.getrandbits(64), plan.faults, plan.strikes, self.outcome.faults)
        self.clock = SimulatedClock()
        self.disk = Disk(random.choice((1, 1, 3)))
        self.ledger = Ledger(self.disk, self._crash)
        self.dying = False
        self._ids = SeededIds(random.getrandbits(32))
        self._limits = EngineLimits(
            cached_cases=random.choice((3, *(20,) * 3, *(1_000,) * 8)),
            verification=VERIFICATION,
            journal=JournalLimits(
                batch_units=random.choice((1, 3, 1_024)),
                queue_units=random.choice((2, 8_192, 8_192)),
                linger_s=random.choice((0.0, 0.0, 0.002)),
            ),
        )
        self._names = 0
        self._documents: list[Document] = list(random.sample(FIXED, random.randint(3, len(FIXED) // 2)))
        self._documents += random.sample(PATTERN_DOCUMENTS, random.randint(0, len(PATTERN_DOCUMENTS) // 3))
        self._documents += [random_document(random, index) for index in range(random.randint(0, 2))]
        calls = Random(f"{plan.seed}/{plan.number}/outside")
        self._outside = Outside(calls, self.ledger) if calls.random() < 0.4 else None
        if self._outside is not None:
            self._documents += calls.sample(CALLING, calls.randint(1, len(CALLING)))
        self._specs = [str(document["id"]) for document in self._documents]
        self._specs += [spec_id for spec_id in self._specs if spec_id in CALLING_IDS] * 3  # else they are a few of many
        self._registered: set[tuple[str, str]] = set()
        self._asked: dict[str, Asked] = {}
        self._answers: dict[tuple[str, Request], Answer] = {}
        self._open: dict[str, list[Seen]] = {}
        self._open_at = -1
        callers = [random.choice(TENANTS[: random.randint(1, 2)]) for _ in range(random.choice((1, 2, 4, 8)))]
        self._tenants = [tenant for tenant in TENANTS if tenant in callers]
        chosen = dict(plan.commands) if plan.commands is not None else None
        self._clients = [
            Client(self, index, tenant, chosen[index] if chosen is not None else None)
            for index, tenant in enumerate(callers)
            if chosen is None or index in chosen
        ]
        self._watched: dict[tuple[str, str], int] = {}
        self._watching = random.random() < 0.3
        self._workers = self._draw_workers(Random(f"{plan.seed}/{plan.number}/workers"))
        self._resume = query.resume_token(dict.fromkeys(range(self.disk.shards), (0, 0)))
        self._store: SimulatedStore | None = None
        self._crashed: asyncio.Future[None] | None = None
        self._torn: Random | None = None
        self._restarting: asyncio.Future[None] | None = None
        self._loop = SimulationLoop(self.clock, Random(random.getrandbits(64)))
        self._loop.set_exception_handler(self._unhandled)

    def run(self) -> Outcome:
        """All of it."""
        ledger, outcome = self.ledger, self.outcome
        with knobs(self._random):
            asyncio.set_event_loop(self._loop)
            try:
                self._loop.run_until_complete(self._lives())
            except Stalled as stalled:
                waiting = "; ".join(client.asking for client in self._clients if client.asking)
                ledger.report(f"wedged: {stalled}; unanswered: {waiting or 'nothing'}")
            finally:
                self.dying = True
                self._end_all()
                self._loop.close()
                asyncio.set_event_loop(None)
        outcome.events, outcome.met, outcome.hashed = ledger.events, ledger.met, ledger.hashed
        outcome.violations = list(ledger.violations)
        if outcome.violations:
            outcome.strikes = list(self.fates.struck)
        else:
            outcome.commands = []
        return outcome

    # -- for the callers ----------------------------------------------------------------------------------------------

    def goes_on(self) -> bool:
        """Whether callers shall ask another thing."""
        return self.outcome.steps < self._plan.steps and not self.ledger.violations

    def next_trace(self, asked: Asked, place: int) -> str:
        """A trace id for one call, the command at this place."""
        self.outcome.commands.append(divmod(place, PER_CLIENT))
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
        if self._open_at != self.outcome.steps // 8:
            self._open_at = self.outcome.steps // 8
            self._open = {name: [] for name in TENANTS}
            for (owner, _), seen in self.ledger.cases.items():
                if seen.case.state not in ENDED:
                    self._open[owner].append(seen)
        return self._open[tenant]

    def stepped(self, who: str, place: int, asked: Asked, request_id: str, outcome: str) -> None:
        """One command was executed; between two of them the engine may be restarted, or the disk get damaged."""
        report = self.outcome
        report.steps += 1
        report.outcomes[outcome if outcome != "ok" else f"ok {asked.method}"] += 1
        line = f"{who} {asked.method} {asked.case_id} {request_id} {outcome}"
        report.trace = zlib.crc32(line.encode(), report.trace)
        if self._tell is not None:
            number = place % PER_CLIENT
            self._tell(
                f"{report.steps:7d} {self.clock.seconds():9.3f} {who}/{number} {asked.method} {asked.case_id} "
                f"{request_id} {outcome} {asked.arguments} {asked.named}"
            )
        fates = self.fates
        if self._restarting is not None and not self._restarting.done() and fates.strikes("restart"):
            self.ledger.struck("restart", ())
            self._restarting.set_result(None)
        if place := fates.strikes("poison"):
            self.ledger.struck("poison", ())
            self._note(f"poison@{place}, {self.ledger.damage(fates.details(('poison', place)))} is damaged")

    def remember(self, trace: str, request: Request, answer: Answer) -> None:
        """What a request id was answered with."""
        self._answers[trace, request] = answer

    def compare(self, trace: str, request: Request, answer: Answer) -> None:
        """A repeated request must be answered as the first time: the same item, the same case (as it is by now)."""
        before = self._answers.get((trace, request))
        if before is None:
            return
        if isinstance(before, InstancesView) and isinstance(answer, InstancesView) and request[2] in NO_EVENT:
            # Asked for again when it is so already, it is answered as things are now.
            if (before.case_id, before.task_id) != (answer.case_id, answer.task_id):
                self.ledger.report(f"differs: {request} was answered about another task than the first time")
        elif not isinstance(before, CaseView) and before != answer:
            self.ledger.report(f"differs: {request} was answered with {answer}, the first time with {before}")
        if not isinstance(before, CaseView):
            return
        same = isinstance(answer, CaseView) and (before.case_id, before.created_at) == (
            answer.case_id,
            answer.created_at,
        )
        if not same or (isinstance(answer, CaseView) and answer.sequence < before.sequence):
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
        self.outcome.lives += 1
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
        while working and not crashed.done():
            restarting = self._restarting = self._loop.create_future()
            await asyncio.wait({crashed, restarting, *working}, return_when=asyncio.FIRST_COMPLETED)
            working = [task for task in working if not task.done()]
            if restarting.done() and working and not crashed.done():
                await self._or_crash(self._restart(), crashed)
        self._restarting = None
        if not crashed.done():
            await self._or_crash(self._come_to_rest(), crashed)
        if crashed.done():
            await self._bury()
            return False
        return True

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
            self._step_clock()
            self._store = SimulatedStore(
                self.disk,
                self.fates,
                self._written,
                self.ledger.struck,
                self._crash,
                self.ledger.report,
                self._note if self._tell is not None else None,
            )
            engine = WorkflowEngine(
                StateStore.over(self._store),
                clock=self.clock,
                ids=self._ids,
                limits=self._limits,
                connectors=self._outside.setup() if self._outside is not None else None,
            )
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
        for tenant in self._tenants:
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

    def _step_clock(self) -> None:
        """A process starts with the wall clock's time, whatever the one before it had."""
        if place := self.fates.strikes("clock"):
            self.ledger.struck("clock", ())
            steps = self.fates.details(("clock", place)).choice(CLOCK_STEPS_S)
            self.clock.wrong += steps * NS_PER_S
            self._note(f"clock@{place}, it differs by {self.clock.wrong / NS_PER_S:.0f} s now")

    def _crash(self, torn: Random | None = None) -> None:
        self._torn = torn
        if self._crashed is not None and not self._crashed.done():
            self._crashed.set_result(None)

    async def _bury(self) -> None:
        """After a crash: nothing of that life runs on, and what was not durable is gone."""
        self.dying = True
        if self._store is not None:
            self._store.die()
        await self._cancel_all()
        self._loop.forget_timers()
        self.dying = False
        if self.disk.lose_power(self._torn):
            self.ledger.reread()
        self.ledger.check_rows()
        if self._random.random() < READ_EVERYTHING:
            self.ledger.read_everything()
        self._note(f"crashed, {len(self.disk.bytes)} keys survive")

    async def _cancel_all(self) -> None:
        while own := self._loop.unfinished():  # one that ends may begin another, which a dead process does not
            for task in own:
                task.cancel()
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
        self.fates.calm = True
        if self._outside is not None:
            self._outside.calm = True
        if self.ledger.damaged:
            self.ledger.restore()
            await self._restart()
        engine = self.engine
        until = self.clock.seconds() + CALM_S
        ripe = self.clock.now() + int(CALM_S * NS_PER_S)
        # Virtual seconds cost nothing, and no event tells when the ledger is content.
        while (  # noqa: ASYNC110
            self._going()
            or self._unwatched()
            or self._due(ripe)
            or self._sending()
            or self._leased()
            or self._calling()
            or (self._store is not None and self._store.in_doubt)
        ) and self.clock.seconds() < until:
            await asyncio.sleep(1.0)
        await asyncio.sleep(1.0)  # a write that was in doubt until now is acknowledged
        for tenant, case_id in self._leased()[:3]:
            self.ledger.report(f"lost: a lease of {tenant}/{case_id} does not end, and nobody has it")
        for tenant, case_id in self._due(self.clock.now() - int(LATE_S * NS_PER_S))[:3]:
            self.ledger.report(f"late: a timer of {tenant}/{case_id} does not fire")
        for message in self._sending()[:3]:
            self.ledger.report(f"lost: message {message.message_id!r} does not reach {message.targets[:3]}")
        for tenant, case_id in self._calling()[:3]:
            self.ledger.report(f"lost: a connector's call of {tenant}/{case_id} does not end")
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
            states = Counter(seen.case.state for (owner, _), seen in self.ledger.cases.items() if owner == tenant)
            counts = (await engine.count(meta=meta)).cases
            while counts is None and self.clock.seconds() < until:  # a restart in an outage counts after it
                counts = (await engine.count(meta=meta)).cases
            if counts is None or any(getattr(counts, state) != states[state] for state in STATES):
                self.ledger.report(f"differs: {tenant} has cases {dict(states)}, counted are {counts}")
            elif counts.open_items != len(wanted):
                self.ledger.report(f"differs: {tenant} has {len(wanted)} open items, counted are {counts.open_items}")
        for name, seen in list(self.ledger.cases.items()):
            try:
                async with asyncio.timeout(WAIT_MAX_S):
                    view = await engine.get_case(name[1], meta=CallMeta(tenant=name[0]))
            except TimeoutError:
                self.ledger.report(f"wedged: {name} does not answer for {WAIT_MAX_S} s")
                continue
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
        self.ledger.check_rows()
        if self._plan.commands is not None or self._random.random() < READ_EVERYTHING:
            self.ledger.read_everything()

    def _going(self) -> list[tuple[str, str]]:
        """Cases whose cascade is paused and should not be."""
        return [name for name, seen in self.ledger.cases.items() if seen.case.ready and seen.case.state == "running"]

    def _due(self, when: int) -> list[tuple[str, str]]:
        """Running cases with timers that are due by then."""
        return [
            name
            for name, seen in self.ledger.cases.items()
            if seen.case.timers
            and seen.case.state == "running"
            and any(timer.due <= when for timer in seen.case.timers.values())
        ]

    def _calling(self) -> list[tuple[str, str]]:
        """Running cases that wait for a connector."""
        return [
            name
            for name, seen in self.ledger.cases.items()
            if seen.case.state == "running"
            and any(run.connector and run.state == "started" for _, run in seen.case.open_work())
        ]

    def _sending(self) -> list[MessageRecord]:
        """Messages that are still on their way."""
        keys = self.ledger.keys
        rows = [row for shard in range(keys.shards) for row in self.disk.scan(*keys.messages(shard))]
        return [
            message
            for message in (MESSAGES.read(key, value) for key, value in rows)
            if message.targets or not message.answered
        ]

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
            except (StoreCorrupt, StoreFormat) as error:
                if not self.ledger.damaged:
                    self.ledger.report(f"differs: watching found the store corrupt: {error}")
            await asyncio.sleep(0.05)
            engine = self.engine

    async def _patrol(self) -> None:
        """Nobody waits for ever."""
        while True:
            await asyncio.sleep(PATROL_S)
            waiting = [client for client in self._clients if client.asking]
            longest = max((self.clock.seconds() - client.since for client in waiting), default=0.0)
            self.fates.relieved = longest > RELIEF_S
            for client in waiting:
                if self.clock.seconds() - client.since > WAIT_MAX_S:
                    self.ledger.report(f"wedged: no answer for {WAIT_MAX_S} s: {client.asking}")

    def _note(self, what: str) -> None:
        if self._tell is not None:
            self._tell(f"        {self.clock.seconds():9.3f} {what}")

    def _written(self, writes: object) -> None:
        self.outcome.commits += 1
        self.ledger.written(writes)  # type: ignore[arg-type]  # the store's writes

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        if not self.dying:
            self.ledger.report(f"fault: {context.get('message')}: {context.get('exception')!r}")
