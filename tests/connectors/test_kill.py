"""kill -9 of a daemon whose connector calls a server that misbehaves: every case ends, every effect is there once.

A life of the daemon begins no more than its share of the cases, and is killed once it has had its time or half of its
share of new effects is there, whichever is first. So it is killed before the end, and in the middle of work, however
fast or slow the machine is.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.conftest import Budget
from tests.connectors.conftest import Started
from tests.e2e.sidecar import Sidecar, register, run, sidecar

CASES_MIN = 150
CASES_MAX = 10_000
STEPS_PER_CASE = 100
LIVES = 4  # at least: a share of the cases is a quarter of them
BATCH = 100  # cases that are begun by one call, at most
KILL_SECONDS = 1.0  # doubles while lives bring nothing: a slow machine needs longer ones
LOOK_SECONDS = 0.005
CALL_SECONDS = 60.0
QUIET_SECONDS = 240.0  # without a case that ends in between: something is stuck

DOCUMENT = json.dumps(
    {
        "id": "effects",
        "tasks": {
            "act": {
                "connector": "outside",
                "request": {"method": "POST", "url": "/effects", "body": "{'case': data.case}"},
                "result": {"number": "data.body.number"},
                "retry": {"max_attempts": 1000, "backoff": 0.1, "max_backoff": 1},
            }
        },
        "flows": [{"from": "start", "to": "act"}, {"from": "act", "to": "end"}],
    }
).encode()


def settings(port: int) -> str:
    """A settings file with one connector."""
    return f"""
[connectors]
allow = ["http://127.0.0.1:{port}"]
networks = ["127.0.0.0/8"]

[connectors.outside]
kind = "http"
base_url = "http://127.0.0.1:{port}"
timeout = 1
max_concurrent = 16
breaker = {{failures = 5, pause = 0.3}}
"""


@pytest.mark.long
def test_every_case_ends_and_every_effect_is_there_once(tmp_path: Path, start_outside: Started, budget: Budget) -> None:
    cases = min(max(budget.steps // STEPS_PER_CASE, CASES_MIN), CASES_MAX)
    ledger = tmp_path / "ledger"
    port = start_outside("--trouble", "0.3", "--delay", "1.5", "--ledger", str(ledger), "--seed", "7")
    config = tmp_path / "knhk.toml"
    config.write_text(settings(port))
    with sidecar(tmp_path, "--config", str(config)) as daemon:
        with daemon.stubs() as stubs:
            register(stubs, DOCUMENT)
        started, kills, fruitless = 0, 0, 0
        since, before = time.monotonic(), 0
        share = cases // LIVES
        while True:
            born, first, last = time.monotonic(), lines(ledger), min(started + share, cases)
            while True:
                if started < last:
                    started = run_some(daemon, started, min(started + BATCH, last))
                lived = time.monotonic() - born
                if lived > KILL_SECONDS * 2**fruitless or lines(ledger) >= first + share // 2:
                    break
                time.sleep(LOOK_SECONDS)
            done = lines(ledger)
            ended = count(daemon, pb.CASE_STATE_COMPLETED) if done >= cases else 0
            if ended == cases:
                break
            fruitless += 1
            if started + done + ended > before:
                since, before, fruitless = time.monotonic(), started + done + ended, 0
            assert time.monotonic() - since < QUIET_SECONDS, (started, done, ended, daemon.log[-2_000:])
            daemon.kill()
            kills += 1
            daemon.start()
        effects = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert len({effect["key"] for effect in effects}) == len(effects) == cases
        assert Counter(effect["body"]["case"] for effect in effects) == Counter(range(cases))
        numbers = {number_of(daemon, case) for case in range(0, cases, max(1, cases // 50))}
        assert len(numbers) == len(range(0, cases, max(1, cases // 50)))
        assert daemon.stop() == 0
    assert kills >= LIVES - 1
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/effects", timeout=CALL_SECONDS) as answer:
        told = json.load(answer)
    assert told["done"] == cases < told["requests"]
    print(f"{cases} cases, {kills} kills, {told['requests']} requests")
    verified = run("verify", str(daemon.data_dir / "workflow_db"))
    assert verified.returncode == 0, verified.stdout + verified.stderr


def lines(ledger: Path) -> int:
    """How many effects are there."""
    return len(ledger.read_text().splitlines()) if ledger.exists() else 0


def run_some(daemon: Sidecar, first: int, last: int) -> int:
    """Run a batch of cases; where the next one begins. The ids make a repetition harmless."""
    request = pb.RunCasesRequest(
        request_id=f"batch-{first}",
        cases=[
            pb.RunCaseRequest(spec_id="effects", case_id=f"case-{number}", data_json=b'{"case": %d}' % number)
            for number in range(first, last)
        ],
    )
    with suppress(grpc.RpcError), daemon.stubs() as stubs:
        stubs.cases.RunCases(request, timeout=CALL_SECONDS)
        return last
    return first


def count(daemon: Sidecar, state: pb.CaseState.ValueType) -> int:
    """How many cases are in a state."""
    found, token = 0, ""
    with daemon.stubs() as stubs:
        while True:
            page = stubs.cases.ListCases(
                pb.ListCasesRequest(filter=pb.CaseFilter(states=[state]), page_size=1_000, page_token=token),
                timeout=CALL_SECONDS,
            )
            found += len(page.cases)
            token = page.next_page_token
            if not token:
                return found


def number_of(daemon: Sidecar, case: int) -> int:
    """What the server answered to a case."""
    with daemon.stubs() as stubs:
        view = stubs.cases.GetCase(pb.GetCaseRequest(case_id=f"case-{case}"), timeout=CALL_SECONDS).case
    number: int = json.loads(view.data_json)["number"]
    return number
