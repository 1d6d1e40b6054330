"""kill -9 under load: nothing that was acknowledged is lost or doubled."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from knhk_sidecar.api import pb
from tests.conftest import Budget
from tests.e2e.load import Acknowledged, check, loaded
from tests.e2e.sidecar import CALL_SECONDS, Sidecar, Stubs, register, sidecar

STEPS_PER_KILL = 800  # a kill with its restart takes two seconds; the budget of CI makes 25 of them
KILLS_MIN = 2
KILLS_MAX = 200


@pytest.mark.long
def test_kill_minus_nine_under_load_loses_and_doubles_nothing(tmp_path: Path, budget: Budget) -> None:
    kills = min(max(budget.steps // STEPS_PER_KILL, KILLS_MIN), KILLS_MAX)
    with sidecar(tmp_path) as daemon:
        with daemon.stubs() as stubs:
            register(stubs)
        with loaded(daemon) as load:
            for _ in range(kills):
                load.await_operations(20)
                time.sleep(random.uniform(0.0, 0.3))
                daemon.kill()
                daemon.start()
            load.await_operations(20)
        with daemon.stubs() as stubs:
            compared = check(stubs, load.acknowledged)
            repeat(stubs, load.acknowledged)
            assert check(stubs, load.acknowledged) == compared
        retries = sum((told.retries for told in load.acknowledged), start=type(load.acknowledged[0].retries)())
        print(f"{kills} kills, {compared} operations compared, retried {dict(retries)}")
        assert daemon.stop() == 0
        reopened(daemon, load.acknowledged, compared)


def repeat(stubs: Stubs, acknowledged: list[Acknowledged]) -> None:
    """Sends acknowledged operations again: the same answers."""
    for told in acknowledged:
        for request_id, case_id in list(told.cases.items())[-3:]:
            name = request_id.removeprefix("run-")
            request = pb.RunCaseRequest(
                spec_id="hello", data_json=f'{{"name": "{name}"}}'.encode(), request_id=request_id
            )
            assert stubs.cases.RunCase(request, timeout=CALL_SECONDS).case.case_id == case_id
            for mark in told.marks[case_id]:
                step = mark.rpartition("-")[2]
                number = 1 if step == "first" else 2
                again = pb.CompleteWorkItemRequest(
                    item_id=f"{number}.1.1@{case_id}",
                    output_json=f'{{"{step}": "{mark}"}}'.encode(),
                    request_id=f"complete-{mark}",
                )
                answer = stubs.work.CompleteWorkItem(again, timeout=CALL_SECONDS)
                assert answer.item.item_id == again.item_id


def reopened(daemon: Sidecar, acknowledged: list[Acknowledged], compared: int) -> None:
    """The same once more after an orderly end."""
    daemon.start()
    with daemon.stubs() as stubs:
        assert check(stubs, acknowledged) == compared
