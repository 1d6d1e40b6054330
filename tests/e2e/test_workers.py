"""Fifty workers over streams; their processes and the daemon are killed at random: each item is done exactly once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.conftest import Budget
from tests.e2e.sidecar import CALL_SECONDS, ROOT, Sidecar, Stubs, code_of, environment, history, register, sidecar

PROCESSES = 5
WORKERS_EACH = 10
CASES_AT_ONCE = 60
STEPS_PER_ROUND = 2_500
ROUNDS_MIN = 3
ROUNDS_MAX = 200
LEASE_S = 1.0  # as in worker_process
END_S = 180.0

CHAIN = json.dumps(
    {
        "id": "chain",
        "tasks": {
            "fan": {},
            "work": {"required_roles": ["worker"], "instances": {"min": 3, "max": 3}},
            "last": {},
        },
        "flows": [
            {"from": "start", "to": "fan"},
            {"from": "fan", "to": "work"},
            {"from": "work", "to": "last"},
            {"from": "last", "to": "end"},
        ],
    }
).encode()
ITEMS = 3


@dataclass
class Crowd:
    """The processes that work, and what they wrote."""

    ready: Path
    log: Path
    processes: list[subprocess.Popen[bytes]]
    seed: int = 0

    def start(self) -> subprocess.Popen[bytes]:
        """One more process."""
        self.seed += 1
        line = [sys.executable, "-m", "tests.e2e.worker_process", self.ready, self.log, str(WORKERS_EACH), self.seed]
        with (self.log.parent / "workers.err").open("ab") as errors:
            return subprocess.Popen([str(part) for part in line], env=environment(), cwd=ROOT, stderr=errors)

    def disturb(self, draw: random.Random) -> None:
        """Kill one and start another, or let one sleep until its leases are over."""
        victim = draw.randrange(len(self.processes))
        process = self.processes[victim]
        if draw.random() < 0.5:
            process.kill()
            process.wait(END_S)
            self.processes[victim] = self.start()
        else:
            process.send_signal(signal.SIGSTOP)
            time.sleep(LEASE_S * 1.5)
            process.send_signal(signal.SIGCONT)

    def await_ready(self) -> None:
        """Waits until every process knows what SIGTERM means."""
        until = time.monotonic() + END_S
        while not {process.pid for process in self.processes} <= {
            line[1] for line in self.lines() if line[0] == "ready"
        }:
            assert time.monotonic() < until, "a worker's process does not start"
            time.sleep(0.05)

    def lines(self) -> list[list[object]]:
        """What was written. A kill may cut a line."""
        found: list[list[object]] = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


@contextmanager
def crowd(daemon: Sidecar) -> Iterator[Crowd]:
    """Fifty workers, gone at the end of the block."""
    made = Crowd(daemon.home / "ready.json", daemon.home / "tokens", [])
    made.log.touch()
    made.processes = [made.start() for _ in range(PROCESSES)]
    try:
        yield made
    finally:
        for process in made.processes:
            if process.poll() is None:
                process.kill()
            process.wait(END_S)


def run_cases(stubs: Stubs, names: Sequence[str]) -> None:
    """Starts cases; the same names twice are the same cases."""
    request = pb.RunCasesRequest(
        cases=[pb.RunCaseRequest(spec_id="chain", case_id=name, request_id=f"run-{name}") for name in names]
    )
    for result in stubs.cases.RunCases(request, timeout=CALL_SECONDS).results:
        assert not result.HasField("error"), result


def ended(stubs: Stubs, names: Sequence[str]) -> None:
    """All of them complete."""
    until = time.monotonic() + END_S
    for name in names:
        while (
            stubs.cases.GetCase(pb.GetCaseRequest(case_id=name), timeout=CALL_SECONDS).case.state
            != pb.CASE_STATE_COMPLETED
        ):
            assert time.monotonic() < until, stubs.cases.ExplainCase(pb.ExplainCaseRequest(case_id=name))
            time.sleep(0.05)


def check(stubs: Stubs, name: str) -> tuple[set[str], int]:
    """Each item of a case was done once, by who held it then; its accepted tokens, and how often work came back."""
    seen: Counter[tuple[str, object]] = Counter()
    current: dict[object, object] = {}
    accepted: set[str] = set()
    for event in history(stubs, name):
        if not event.event_type.startswith("item_"):
            continue
        told = json.loads(event.data_json)
        instance, item_id = told["instance"], told["item_id"]
        seen[event.event_type, instance] += 1
        if event.event_type == "item_started":
            assert told["worker"], "it was leased"
            current[instance] = item_id
        elif event.event_type == "item_completed":
            assert current[instance] == item_id, "by its newest token"
            assert told["output"] == {"by-work": item_id}, "and by whoever had that"
            accepted.add(item_id)
    instances = range(1, ITEMS + 1)
    returned = sum(seen["item_returned", instance] for instance in instances)
    for instance in instances:
        assert seen["item_completed", instance] == 1
        assert seen["item_offered", instance] == 1
        assert seen["item_started", instance] == 1 + seen["item_returned", instance]
    return accepted, returned


@pytest.mark.long
def test_every_item_is_done_once_whoever_is_killed(tmp_path: Path, budget: Budget) -> None:
    rounds = min(max(budget.steps // STEPS_PER_ROUND, ROUNDS_MIN), ROUNDS_MAX)
    draw = random.Random(rounds)
    names: list[str] = []
    with sidecar(tmp_path) as daemon:
        with daemon.stubs() as stubs:
            register(stubs, CHAIN)
        with crowd(daemon) as workers:
            for number in range(rounds):
                some = [f"case-{number}-{index}" for index in range(CASES_AT_ONCE)]
                with daemon.stubs() as stubs:
                    run_cases(stubs, some)
                names += some
                time.sleep(draw.uniform(0.1, 0.5))
                workers.disturb(draw)
                if number % 2 == 0:
                    daemon.kill()
                    daemon.start()
            with daemon.stubs() as stubs:
                ended(stubs, names)
            workers.await_ready()
            for process in workers.processes:
                process.terminate()
            for process in workers.processes:
                assert process.wait(END_S) == 0
            lines = workers.lines()
        tokens = {str(line[1]) for line in lines if line[0] == "begun"}
        accepted: set[str] = set()
        returned = 0
        with daemon.stubs() as stubs:
            for name in names:
                found, back = check(stubs, name)
                accepted |= found
                returned += back
            assert accepted <= tokens
            stale = sorted(tokens - accepted)
            for token in stale:
                with pytest.raises(grpc.RpcError) as refusal:
                    stubs.work.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=token), timeout=CALL_SECONDS)
                assert code_of(refusal.value) in (grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION)
        assert len(accepted) == ITEMS * len(names)
        counts = [line for line in lines if line[0] == "counts"]
        assert len(counts) == PROCESSES
        refused = sum(int(str(line[2])) for line in counts)
        print(f"{rounds} rounds, {len(accepted)} items, {returned} came back, {len(stale)} stale, {refused} refused")
        assert daemon.stop() == 0
