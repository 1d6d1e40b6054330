"""Clients that work until they are told to stop, and remember what was acknowledged.

Each client runs cases of two tasks and completes both. Every operation has a request id and a mark that is found again
in the history. What is not acknowledged is sent again with its request id, to whatever daemon runs by then: as long as
the load goes on, every operation ends up acknowledged or is the client's last one.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import grpc

from knhk_sidecar.api import pb
from tests.e2e.sidecar import Sidecar, Stubs, case_ids, code_of, history

T = TypeVar("T")

CLIENTS = 8
CALL_SECONDS = 5.0
JOIN_SECONDS = 120.0
RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(slots=True)
class Acknowledged:
    """What one client was told: its cases by request id, and the marks of its completed items by case."""

    cases: dict[str, str] = field(default_factory=dict)
    marks: dict[str, list[str]] = field(default_factory=dict)
    last: str = ""
    """The request id of a case that was asked for without an answer when the load ended."""
    last_mark: str = ""
    retries: Counter[str] = field(default_factory=Counter)


class Load:
    """The clients."""

    def __init__(self, sidecar: Sidecar, clients: int = CLIENTS) -> None:
        self._sidecar = sidecar
        self._stopped = threading.Event()
        self.acknowledged = [Acknowledged() for _ in range(clients)]
        self._problems: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number, told), name=f"client-{number}")
            for number, told in enumerate(self.acknowledged)
        ]

    def start(self) -> None:
        """Lets the clients begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets each client end after the answer that it waits for; without a daemon it gives up."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive(), f"{thread.name} hangs"
        if self._problems:
            raise self._problems[0]

    @property
    def operations(self) -> int:
        """How many operations were acknowledged so far."""
        return sum(len(told.cases) + sum(map(len, told.marks.values())) for told in self.acknowledged)

    def await_operations(self, more: int, seconds: float = 120.0) -> None:
        """Waits until so many more were acknowledged."""
        wanted, until = self.operations + more, time.monotonic() + seconds
        while self.operations < wanted:
            assert time.monotonic() < until, f"only {self.operations} of {wanted} operations"
            assert not self._problems, self._problems
            time.sleep(0.01)

    def _work(self, number: int, told: Acknowledged) -> None:
        try:
            with ExitStack() as stack:
                line = _Line(self._sidecar, self._stopped, told, stack)
                index = 0
                while not self._stopped.is_set():
                    index += 1
                    if not _one_case(line, told, f"{number}-{index}"):
                        return
        except BaseException as problem:
            self._problems.append(problem)
            raise


class _Line:
    """One client's connection, made anew for each start of the daemon."""

    def __init__(self, sidecar: Sidecar, stopped: threading.Event, told: Acknowledged, stack: ExitStack) -> None:
        self._sidecar = sidecar
        self._stopped = stopped
        self._told = told
        self._stack = stack
        self._of = 0
        self._stubs: Stubs | None = None

    def ask(self, call: Callable[[Stubs], T]) -> T | None:
        """The answer, however often it takes; None when the load ended first."""
        while True:
            try:
                return call(self._connected())
            except grpc.RpcError as error:
                code = code_of(error)
                if code not in RETRIED:
                    raise
                self._told.retries[code.name] += 1
            if self._stopped.is_set():
                return None
            time.sleep(random.uniform(0.01, 0.05))

    def _connected(self) -> Stubs:
        starts = self._sidecar.starts
        if self._stubs is None or self._of != starts:
            self._stack.close()
            self._stubs, self._of = self._stack.enter_context(self._sidecar.stubs()), starts
        return self._stubs


def _one_case(line: _Line, told: Acknowledged, name: str) -> bool:
    """One case from its start to its end; False when the load ended in the middle."""
    told.last = name
    run = pb.RunCaseRequest(spec_id="hello", data_json=json.dumps({"name": name}).encode(), request_id=f"run-{name}")
    ran = line.ask(lambda stubs: stubs.cases.RunCase(run, timeout=CALL_SECONDS))
    if ran is None:
        return False
    case_id = ran.case.case_id
    told.cases[f"run-{name}"] = case_id
    told.marks[case_id] = []
    told.last = ""
    item = f"1.1.1@{case_id}"
    for step in ("first", "second"):
        mark = f"{name}-{step}"
        told.last_mark = mark
        request = pb.CompleteWorkItemRequest(
            item_id=item, output_json=json.dumps({step: mark}).encode(), request_id=f"complete-{mark}"
        )
        completed = line.ask(partial(_complete, request))
        if completed is None:
            return False
        told.marks[case_id].append(mark)
        told.last_mark = ""
        item = next(iter(completed.opened_item_ids), "")
        assert bool(item) is (step == "first"), completed
    return True


def _complete(request: pb.CompleteWorkItemRequest, stubs: Stubs) -> pb.CompleteWorkItemResponse:
    return stubs.work.CompleteWorkItem(request, timeout=CALL_SECONDS)


@contextmanager
def loaded(sidecar: Sidecar) -> Iterator[Load]:
    """Clients for the length of a block."""
    load = Load(sidecar)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def check(stubs: Stubs, acknowledged: Sequence[Acknowledged]) -> int:
    """Every acknowledged operation is there exactly once, and nothing is there twice. How many were compared."""
    operations = 0
    present = case_ids(stubs)
    assert len(present) == len(set(present))
    expected = {case_id for told in acknowledged for case_id in told.cases.values()}
    assert expected <= set(present), f"lost: {sorted(expected - set(present))[:5]}"
    # A client's last case may be there without its having heard: one per client at most, never a second copy.
    unheard = set(present) - expected
    assert len(unheard) <= sum(1 for told in acknowledged if told.last)
    for told in acknowledged:
        for case_id in told.cases.values():
            events = history(stubs, case_id)
            kinds = Counter(event.event_type for event in events)
            assert kinds["case_created"] == 1
            outputs = [
                mark
                for event in events
                if event.event_type == "item_completed"
                for mark in json.loads(event.data_json)["output"].values()
            ]
            heard = told.marks[case_id]
            assert outputs[: len(heard)] == heard, f"case {case_id}: {outputs}, acknowledged {heard}"
            assert outputs[len(heard) :] in ([], [told.last_mark]), f"case {case_id}: {outputs}, acknowledged {heard}"
            operations += 1 + len(heard)
    return operations
