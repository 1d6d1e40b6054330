"""Simulated callers: what they ask, what they are told, and whether that can be true.

A caller knows cases from what the ledger has seen and from its own memory, so it asks for the right thing most of the
time and for something stale, wrong or repeated the rest. Every call carries a trace of its own; the records name it.

What a caller does next follows from its own seed and the number of the command, so that a command is about the same
when others are left out.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from knhk_workflow import (
    Busy,
    CallMeta,
    CaseView,
    CompleteRequest,
    DeadlineExceeded,
    InstancesView,
    MessageView,
    Page,
    RequestMismatch,
    RunRequest,
    StoreCorrupt,
    StoreFormat,
    StoreUnavailable,
    WorkflowEngine,
    WorkflowError,
    WorkItemView,
)
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.store import OutcomeUnknown
from tests.simulation.disk import TICK_S
from tests.simulation.fates import PER_CLIENT, mixed
from tests.simulation.ledger import Name, Request, Seen
from tests.simulation.nets import PATTERN_DATA, SIGNALS, VARIABLES

if TYPE_CHECKING:
    from tests.simulation.simulation import Episode

REMEMBERED: Final = 200  # requests that a caller may repeat
OPEN_CASES: Final = 24  # of a tenant; more only makes each of them move less often
TRANSIENT: Final = (StoreUnavailable, Busy, DeadlineExceeded)
_REFUSED: Final = frozenset({"StoreUnavailable", "StoreFull", "Fenced", "Busy"})
KEYS: Final = ("key-1", "key-2")
READS: Final = frozenset({"get_case", "get_case_history", "explain_case"})
NO_EVENT: Final = READS | {
    "cancel_case",
    "execute_case",
    "update_case_data",
    "cancel_task",
    "close_instances",
    "complete_instances",
    "cancel_instances",
}
"""Commands that may be right and change nothing."""


Answer = CaseView | WorkItemView | InstancesView
"""Of a command on one case."""


class Asked(msgspec.Struct, frozen=True):
    """One command: the engine's method and its arguments."""

    method: str
    arguments: tuple[object, ...]
    case_id: str = ""
    case_ids: tuple[str, ...] = ()
    named: tuple[tuple[str, object], ...] = ()

    def call(self, engine: WorkflowEngine, meta: CallMeta) -> Awaitable[object]:
        """Ask it."""
        ask: Callable[..., Awaitable[object]] = getattr(engine, self.method)
        return ask(*self.arguments, **dict(self.named), meta=meta)


class Client:
    """One caller of one tenant."""

    def __init__(self, episode: Episode, number: int, tenant: str, only: Sequence[int] | None) -> None:
        """`only`: the numbers of the commands to execute, None = as many as the episode wants."""
        self._episode = episode
        self._ledger = episode.ledger
        self._random = Random(0)
        self._seed = mixed(episode.fates.seed, 4, number)
        self._places = PER_CLIENT * number
        self._left = deque(only) if only is not None else None
        self._next_number = 0
        self._name = f"client-{number}"
        self._tenant = tenant
        self._mine: list[Seen] = []
        self._requests: list[tuple[str, Asked]] = []
        self._made = 0
        self._menu = [choice for choice, weight in _MENU for _ in range(weight)]
        self.since = 0.0
        self.asking = ""

    async def run(self) -> None:
        """Ask one thing after another until the episode has had enough."""
        episode = self._episode
        while episode.goes_on():
            if self._left is not None:
                if not self._left:
                    return
                self._next_number = self._left.popleft()
            else:
                self._next_number += 1
            self._random.seed(mixed(self._seed, self._next_number))
            asked, request_id = self._next()
            if await self._ask(asked, request_id) in _REFUSED:
                await asyncio.sleep(self._random.randint(0, 50) * TICK_S)  # as a caller does: try again later
            elif self._random.random() < 0.3:
                await asyncio.sleep(self._random.randint(0, 5) * TICK_S)

    # -- what to ask --------------------------------------------------------------------------------------------------

    def _next(self) -> tuple[Asked, str]:
        random = self._random
        if self._requests and random.random() < 0.08:
            request_id, asked = random.choice(self._requests)
            if self._episode.disk.shards == 1 and random.random() < 0.3:  # across shards a mismatch is not noticed
                other = random.choice(self._requests)[1]
                if other.method == asked.method:
                    return other, request_id
            return asked, request_id
        chosen: Asked | None = None
        while chosen is None:
            chosen = random.choice(self._menu)(self)
        asked = chosen
        request_id = ""
        if random.random() < 0.4:
            self._made += 1
            request_id = f"r{self._made}"
            self._requests.append((request_id, asked))
            if len(self._requests) > REMEMBERED:
                del self._requests[: REMEMBERED // 2]
        return asked, request_id

    def _data(self) -> Mapping[str, object]:
        random = self._random
        data: dict[str, object] = {name: random.randint(0, 4) for name in VARIABLES if random.random() < 0.9}
        if random.random() < 0.5:
            data["list"] = [random.randint(0, 4) for _ in range(random.randint(0, 3))]
        if random.random() < 0.05:
            data["text"] = "x" * random.randint(1, 3_000)
        return data

    def _new_id(self) -> str:
        random = self._random
        if random.random() < 0.15:
            return self._episode.some_name()  # taken already, perhaps, or another tenant's
        return self._episode.new_name()

    def _case(self) -> Seen | None:
        """A case of the tenant, mostly an open one."""
        cases = self._episode.open_cases(self._tenant)
        if self._random.random() < 0.05:
            return self._random.choice(self._mine) if self._mine else None
        if not cases:
            return None
        found = self._random.choice(cases if self._random.random() < 0.6 else cases[:2])  # some are in demand
        if self._random.random() < 0.1:
            self._mine.append(found)
        return found

    def _run(self) -> Asked | None:
        if len(self._episode.open_cases(self._tenant)) > OPEN_CASES and self._random.random() < 0.8:
            return None
        method = "run_case" if self._random.random() < 0.75 else "create_case"
        case_id = self._new_id() if self._random.random() < 0.8 else ""
        spec_id = self._episode.some_spec(self._random)
        named = (("case_id", case_id), ("business_key", self._random.choice(("", *KEYS))))
        data = {**PATTERN_DATA.get(spec_id, {}), **self._data()}
        return Asked(method, (spec_id, data), case_id, named=named)

    def _run_many(self) -> Asked | None:
        if len(self._episode.open_cases(self._tenant)) > OPEN_CASES:
            return None
        ids = tuple(self._new_id() for _ in range(self._random.randint(0, 4)))
        requests = [RunRequest(self._episode.some_spec(self._random), self._data(), case_id) for case_id in ids]
        return Asked("run_cases", (requests,), case_ids=ids)

    def _item(self, *states: str) -> tuple[str, str] | None:
        """The id of an item and its case; sometimes of one that was open once, or never."""
        seen = self._case()
        if seen is None:
            return None
        case = seen.case
        if self._random.random() < 0.06:
            number = self._random.randint(1, case.last_activation + 1)
            return f"{number}.1.{self._random.randint(1, 2)}@{case.case_id}", case.case_id
        work = [(activation, run) for activation, run in case.open_work() if not states or run.state in states]
        if not work:
            return None
        activation, run = self._random.choice(work)
        return f"{activation.number}.{run.number}.{run.attempt}@{case.case_id}", case.case_id

    def _user(self) -> str:
        return self._random.choice(("", "", "ann", "bob"))

    def _complete(self) -> Asked | None:
        item = self._item()
        if item is None:
            return None
        output = self._data() if self._random.random() < 0.5 else None
        return Asked("complete_work_item", (item[0], output, self._user()), item[1])

    def _complete_many(self) -> Asked | None:
        items = {item[1]: item[0] for item in (self._item() for _ in range(4)) if item is not None}
        requests = [CompleteRequest(item, self._data()) for item in items.values()]
        return Asked("complete_work_items", (requests,), case_ids=tuple(items)) if items else None

    def _start(self) -> Asked | None:
        item = self._item("offered", "allocated")
        return Asked("start_work_item", (item[0], self._user()), item[1]) if item else None

    def _claim(self) -> Asked | None:
        item = self._item("offered")
        return Asked("claim_work_item", (item[0], self._random.choice(("ann", "bob"))), item[1]) if item else None

    def _release(self) -> Asked | None:
        item = self._item("allocated")
        return Asked("release_work_item", (item[0],), item[1]) if item else None

    def _fail(self) -> Asked | None:
        item = self._item()
        return Asked("fail_work_item", (item[0], "E1", "says the caller", self._user()), item[1]) if item else None

    def _skip(self) -> Asked | None:
        item = self._item()
        return Asked("skip_work_item", (item[0],), item[1]) if item else None

    def _on_case(self, method: str, *arguments: object) -> Asked | None:
        seen = self._case()
        return Asked(method, (seen.case.case_id, *arguments), seen.case.case_id) if seen is not None else None

    def _update(self) -> Asked | None:
        seen = self._case()
        if seen is None:
            return None
        case = seen.case
        expected = self._random.choice((0, 0, case.sequence, case.sequence - 1))
        patch = self._data() if self._random.random() < 0.95 else {}
        named = (("expected_sequence", max(expected, 0)),)
        return Asked("update_case_data", (case.case_id, patch), case.case_id, named=named)

    def _resume(self) -> Asked | None:
        seen = self._case()
        if seen is None or (seen.case.state != "suspended" and self._random.random() < 0.9):
            return None
        return Asked("resume_case", (seen.case.case_id,), seen.case.case_id)

    def _begin(self) -> Asked | None:
        seen = self._case()
        if seen is None or (seen.case.state != "created" and self._random.random() < 0.9):
            return None
        method = self._random.choice(("start_case", "execute_case"))
        return Asked(method, (seen.case.case_id,), seen.case.case_id)

    def _resolve(self) -> Asked | None:
        seen = self._case()
        if seen is None:
            return None
        case = seen.case
        number = self._random.choice(list(case.incidents)) if case.incidents else 1
        if not case.incidents and self._random.random() < 0.95:
            return None
        action = self._random.choice(("retry", "retry", "skip", "complete", "fail_case"))
        data = self._data() if action == "complete" else None
        return Asked("resolve_incident", (f"{number}@{case.case_id}", action, data), case.case_id)

    def _signal(self) -> Asked | None:
        """A signal to a case, to a key, or to all who wait for it."""
        random = self._random
        lives = random.choice((None, None, 0, NS_PER_S, 60 * NS_PER_S))
        data = self._data() if random.random() < 0.5 else None
        arguments = (random.choice(SIGNALS), data)
        if random.random() < 0.7:
            seen = self._case()
            if seen is None:
                return None
            case_id = seen.case.case_id
            return Asked("trigger_case", arguments, case_id, named=(("case_id", case_id), ("time_to_live", lives)))
        key = random.choice(("", *KEYS))
        return Asked("trigger_case", arguments, named=(("key", key), ("time_to_live", lives)))

    def _instances(self) -> Asked | None:
        """Something about a task with several instances, if the case has one at work."""
        seen = self._case()
        if seen is None:
            return None
        many = [each for each in seen.case.activations.values() if each.instances]
        if not many:
            return None
        found = self._random.choice(many)
        method = self._random.choice(
            ("add_instance", "add_instance", "close_instances", "complete_instances", "cancel_instances", "cancel_task")
        )
        named = (("activation", found.number if self._random.random() < 0.7 else 0),)
        return Asked(method, (seen.case.case_id, found.task), seen.case.case_id, named=named)

    def _look(self) -> Asked | None:
        seen = self._case()
        if seen is None:
            return None
        method = self._random.choice(("get_case", "get_case", "get_case_history", "explain_case"))
        case_id = seen.case.case_id
        named: tuple[tuple[str, object], ...] = ()
        if method == "get_case_history":
            named = (("after_sequence", self._random.randint(0, seen.case.sequence)), ("page_size", 50))
        return Asked(method, (case_id,), case_id, named=named)

    # -- what comes back ----------------------------------------------------------------------------------------------

    async def _ask(self, asked: Asked, request_id: str) -> str:
        """Ask, judge the answer, and say in a word what it was."""
        episode, ledger = self._episode, self._ledger
        random = self._random
        place = self._places + self._next_number
        trace = episode.next_trace(asked, place)
        deadline = 0
        if episode.fates.strikes_command("deadline", place, random):
            ledger.struck("deadline", ())
            deadline = episode.clock.now() + random.randint(-1, 10) * int(TICK_S * NS_PER_S)
        meta = CallMeta(
            tenant=self._tenant,
            principal=self._name,
            method=asked.method,
            request_id=request_id,
            trace_id=trace,
            deadline=max(deadline, 0),
        )
        request = (self._tenant, self._name, asked.method, request_id)
        earlier = ledger.request(request) if request_id else None
        self.since, self.asking = episode.clock.seconds(), f"{asked} as {trace}"
        outcome = "ok"
        try:
            if episode.fates.strikes_command("cancel", place, random):
                ledger.struck("cancel", ())
                answer = await self._go_away(asked, meta)
            else:
                answer = await asked.call(episode.engine, meta)
        except asyncio.CancelledError:
            if episode.dying:
                raise
            outcome = "cancelled"
        except (StoreCorrupt, StoreFormat, OutcomeUnknown) as error:
            outcome = type(error).__name__
            if not isinstance(error, OutcomeUnknown) and not ledger.may_be_damaged(self._tenant, asked):
                ledger.report(f"differs: {asked} found the store corrupt: {error}")
        except WorkflowError as error:
            outcome = type(error).__name__
            self._refusal(asked, trace, earlier, error)
        except Exception as error:  # noqa: BLE001  # an error that is not the engine's own is a bug of the engine's
            outcome = repr(error)
            where = traceback.extract_tb(error.__traceback__)[-1]
            ledger.report(f"fault: {asked} ended with {error!r} in {where.name}, line {where.lineno}")
        else:
            self._acknowledged(asked, trace, request, answer)
        self.asking = ""
        episode.stepped(self._name, place, asked, request_id, outcome)
        return outcome

    async def _go_away(self, asked: Asked, meta: CallMeta) -> object:
        """Ask, perhaps while somebody else is at the same case, and perhaps do not wait for the answer."""
        random, engine = self._random, self._episode.engine
        rivals: list[asyncio.Future[CaseView]] = []
        if asked.case_id:
            other = CallMeta(tenant=meta.tenant, principal="rival")
            rivals = [
                asyncio.ensure_future(engine.update_case_data(asked.case_id, self._data(), meta=other))
                for _ in range(random.randint(0, 2))
            ]
        task = asyncio.ensure_future(asked.call(engine, meta))
        calls: list[asyncio.Future[Any]] = [task, *rivals]
        for begun in calls:
            begun.add_done_callback(_heard)  # a crash may end this caller before it hears of them
        for _ in range(random.randint(0, 8)):
            if not task.done():
                await asyncio.sleep(0)
        if random.random() < 0.3 and not task.done():
            await asyncio.sleep(random.randint(0, 6) * TICK_S)
        if not task.done():
            task.cancel()
        for answer in await asyncio.gather(*rivals, return_exceptions=True):
            if isinstance(answer, Exception) and not isinstance(answer, WorkflowError):
                self._ledger.report(f"fault: a rival of {asked} ended with {answer!r}")
        return await task

    def _refusal(self, asked: Asked, trace: str, earlier: str | None, error: WorkflowError) -> None:
        """An error that says: nothing was changed. It must be true, and fair to a repeated request."""
        self._ledger.refused(trace)
        if earlier is None:
            return
        before = self._episode.asked_as(earlier)
        if isinstance(error, RequestMismatch):
            if before == asked:
                self._ledger.report(f"differs: {asked} was refused as another command than itself")
        elif before == asked and not isinstance(error, TRANSIENT):
            self._ledger.report(f"lost: {asked} was carried out as {earlier}, repeating it gave {error!r}")

    def _acknowledged(self, asked: Asked, trace: str, request: Request, answer: object) -> None:
        """An answer that says: done. Its record must be written by now, once."""
        if asked.method in READS:
            self._read(asked, answer)
        elif isinstance(answer, MessageView):
            self._delivered(asked, trace, request, answer)
        elif isinstance(answer, InstancesView):
            self._check(asked, trace, request, (self._tenant, answer.case_id), answer)
        elif isinstance(answer, CaseView):
            self._ledger.shown(answer)
            self._check(asked, trace, request, (self._tenant, answer.case_id), answer)
        elif isinstance(answer, WorkItemView):
            self._check(asked, trace, request, (self._tenant, answer.case_id), answer)
        elif isinstance(answer, list):
            for index, element in enumerate(answer):
                case_id = asked.case_ids[index]
                one = (*request[:3], f"{request[3]}#{index}" if request[3] else "")
                if isinstance(element, CaseView | WorkItemView):
                    if isinstance(element, CaseView):
                        self._ledger.shown(element)
                    self._check(asked, trace, one, (self._tenant, element.case_id), element)
                elif not isinstance(element, OutcomeUnknown) and asked.case_ids.count(case_id) == 1:
                    self._ledger.refused(trace, (self._tenant, case_id))

    def _read(self, asked: Asked, answer: object) -> None:
        """What is shown is written."""
        name = (self._tenant, asked.case_id)
        if isinstance(answer, CaseView):
            self._ledger.shown(answer)
        elif isinstance(answer, Page):
            self._ledger.told(name, [event.sequence for event in answer.items], int(str(asked.named[0][1])))
        self._ledger.compare_live(self._episode.engine, name)

    def _delivered(self, asked: Asked, trace: str, request: Request, answer: MessageView) -> None:
        """Each case that is said to have a signal has it: once, as its request id makes sure."""
        for delivery in answer.deliveries:
            name = (self._tenant, delivery.case_id)
            one = (*request[:3], f"{answer.message_id}#{delivery.case_id}")
            if delivery.outcome == "lost":
                continue  # it may have been refused there, or nobody waited
            if self._ledger.request(one) is None and not (asked.case_id and self._ledger.wrote(trace, name)):
                self._ledger.report(
                    f"lost: {asked} is said to be {delivery.outcome} in {name}, nothing is written there"
                )
            self._ledger.compare_live(self._episode.engine, name)

    def _check(self, asked: Asked, trace: str, request: Request, name: Name, answer: Answer) -> None:
        ledger, episode = self._ledger, self._episode
        if ledger.acknowledged(trace, name):
            if request[3]:
                episode.remember(trace, request, answer)
        else:
            earlier = ledger.request(request) if request[3] else None
            if earlier is None:
                if asked.method not in NO_EVENT:
                    ledger.report(f"lost: {asked} was acknowledged to {trace}, and nothing is written in {name}")
            elif episode.asked_as(earlier) != asked:
                ledger.report(f"differs: {asked} was answered with the result of {episode.asked_as(earlier)}")
            else:
                episode.compare(earlier, request, answer)
        ledger.compare_live(episode.engine, name)


def _heard(future: asyncio.Future[Any]) -> None:
    """Whatever the outcome, somebody knows it."""
    if not future.cancelled():
        future.exception()


_MENU: Final[tuple[tuple[Callable[[Client], Asked | None], int], ...]] = (
    (Client._run, 12),
    (Client._run_many, 2),
    (Client._complete, 40),
    (Client._complete_many, 2),
    (Client._start, 10),
    (Client._claim, 5),
    (Client._release, 3),
    (Client._fail, 3),
    (Client._skip, 4),
    (Client._begin, 8),
    (Client._update, 5),
    (Client._resolve, 8),
    (Client._resume, 8),
    (Client._signal, 6),
    (Client._instances, 3),
    (Client._look, 14),
    (lambda client: client._on_case("suspend_case", "paused by the caller"), 2),
    (lambda client: client._on_case("cancel_case", "no longer wanted"), 1),
)
