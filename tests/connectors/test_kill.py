"""kill -9 of a daemon whose connector calls a server that misbehaves: every case ends, every effect is there once."""

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
BATCH = 100
KILL_SECONDS = 1.0
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
timeout = 0.3
max_concurrent = 16
breaker = {{failures = 5, pause = 0.3}}
"""


@pytest.mark.long
def test_every_case_ends_and_every_effect_is_there_once(tmp_path: Path, start_outside: Started, budget: Budget) -> None:
    cases = min(max(budget.steps // STEPS_PER_CASE, CASES_MIN), CASES_MAX)
    ledger = tmp_path / "ledger"
    port = start_outside("--trouble", "0.3", "--ledger", str(ledger), "--seed", "7")
    config = tmp_path / "knhk.toml"
    config.write_text(settings(port))
    with sidecar(tmp_path, "--config", str(config)) as daemon:
        with daemon.stubs() as stubs:
            register(stubs, DOCUMENT)
        started, kills = 0, 0
        since, before = time.monotonic(), 0
        while True:
            born = time.monotonic()
            while started < cases and time.monotonic() - born < KILL_SECONDS:
                started = run_some(daemon, started, cases)
            time.sleep(max(0.0, KILL_SECONDS - (time.monotonic() - born)))
            done = len(ledger.read_text().splitlines()) if ledger.exists() else 0
            ended = count(daemon, pb.CASE_STATE_COMPLETED) if done >= cases else 0
            if ended == cases:
                break
            if done + ended > before:
                since, before = time.monotonic(), done + ended
            assert time.monotonic() - since < QUIET_SECONDS, (done, ended, daemon.log[-2_000:])
            daemon.kill()
            kills += 1
            daemon.start()
        effects = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert len({effect["key"] for effect in effects}) == len(effects) == cases
        assert Counter(effect["body"]["case"] for effect in effects) == Counter(range(cases))
        numbers = {number_of(daemon, case) for case in range(0, cases, max(1, cases // 50))}
        assert len(numbers) == len(range(0, cases, max(1, cases // 50)))
        assert daemon.stop() == 0
    assert kills > 0
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/effects", timeout=10) as answer:
        told = json.load(answer)
    assert told["done"] == cases < told["requests"]
    print(f"{cases} cases, {kills} kills, {told['requests']} requests")
    verified = run("verify", str(daemon.data_dir / "workflow_db"))
    assert verified.returncode == 0, verified.stdout + verified.stderr


def run_some(daemon: Sidecar, first: int, cases: int) -> int:
    """Run a batch of cases; where the next one begins. The ids make a repetition harmless."""
    last = min(first + BATCH, cases)
    request = pb.RunCasesRequest(
        request_id=f"batch-{first}",
        cases=[
            pb.RunCaseRequest(spec_id="effects", case_id=f"case-{number}", data_json=b'{"case": %d}' % number)
            for number in range(first, last)
        ],
    )
    with suppress(grpc.RpcError), daemon.stubs() as stubs:
        stubs.cases.RunCases(request, timeout=10)
        return last
    return first


def count(daemon: Sidecar, state: pb.CaseState.ValueType) -> int:
    """How many cases are in a state."""
    found, token = 0, ""
    with daemon.stubs() as stubs:
        while True:
            page = stubs.cases.ListCases(
                pb.ListCasesRequest(filter=pb.CaseFilter(states=[state]), page_size=1_000, page_token=token), timeout=10
            )
            found += len(page.cases)
            token = page.next_page_token
            if not token:
                return found


def number_of(daemon: Sidecar, case: int) -> int:
    """What the server answered to a case."""
    with daemon.stubs() as stubs:
        view = stubs.cases.GetCase(pb.GetCaseRequest(case_id=f"case-{case}"), timeout=10).case
    number: int = json.loads(view.data_json)["number"]
    return number
