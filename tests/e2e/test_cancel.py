"""Calls that are cancelled, at every moment of their way, under load: the journal goes on, and nothing is half done."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Protocol

import grpc
import grpc.aio
import pytest

from knhk_sidecar.api import pb
from tests.conftest import Budget
from tests.e2e.sidecar import CALL_SECONDS, Sidecar, case_ids, history, register, sidecar


class Taken(Protocol):
    """A call that can be taken back."""

    def cancel(self) -> bool: ...

    async def code(self) -> grpc.StatusCode: ...


CLIENTS = 8
ROUNDS_MAX = 100
STEPS_PER_ROUND = 200


@pytest.mark.long
async def test_cancelled_calls_never_wedge_the_journal(tmp_path: Path, budget: Budget) -> None:
    rounds = min(max(budget.steps // STEPS_PER_ROUND, 10), ROUNDS_MAX)
    with sidecar(tmp_path) as daemon:
        with daemon.stubs() as stubs:
            register(stubs)
            stubs.cases.RunCase(pb.RunCaseRequest(spec_id="hello", case_id="one"), timeout=CALL_SECONDS)
        options = [("grpc.ssl_target_name_override", "localhost")]
        ended: Counter[str] = Counter()
        async with grpc.aio.secure_channel(daemon.ready["grpc"], daemon.credentials(), options) as channel:
            await asyncio.gather(*(client(channel, number, rounds, ended) for number in range(CLIENTS)))
            await pb.CaseServiceStub(channel).RunCase(pb.RunCaseRequest(spec_id="hello"), timeout=CALL_SECONDS)
            update = pb.UpdateCaseDataRequest(case_id="one", data_json=b'{"last": true}')
            await pb.CaseServiceStub(channel).UpdateCaseData(update, timeout=CALL_SECONDS)
        assert ended["CANCELLED"] > rounds, (
            ended
        )  # each client takes a call back before it has left, in every third turn
        compare(daemon)
        assert daemon.stop() == 0
        daemon.start()
        compare(daemon)
        print(f"{dict(ended)}")


async def client(channel: grpc.aio.Channel, number: int, rounds: int, ended: Counter[str]) -> None:
    """Calls and takes most of them back, at once or after a moment: on cases of its own, and on one that all share.

    The moments are spread over twice the time that the calls took when they were last let through.
    """
    cases = pb.CaseServiceStub(channel)
    usual = 0.002
    for turn in range(rounds):
        name = f"{number}-{turn}"
        calls: list[Taken] = [
            cases.RunCase(pb.RunCaseRequest(spec_id="hello", case_id=name, request_id=name), timeout=CALL_SECONDS),
            cases.UpdateCaseData(
                pb.UpdateCaseDataRequest(case_id="one", data_json=b'{"by": "x"}'), timeout=CALL_SECONDS
            ),
            cases.GetCase(pb.GetCaseRequest(case_id="one"), timeout=CALL_SECONDS),
        ]
        if turn % 3:
            await asyncio.sleep(random.uniform(0.0, 2 * usual))
        else:
            calls[turn % len(calls)].cancel()
        for call in calls:
            if random.random() < 0.7:
                call.cancel()
        for outcome in await asyncio.gather(*(finished(call) for call in calls)):
            ended[outcome] += 1
        # With the same request id: whatever became of the first, now it is done, once.
        began = time.monotonic()
        answer = await cases.RunCase(
            pb.RunCaseRequest(spec_id="hello", case_id=name, request_id=name), timeout=CALL_SECONDS
        )
        usual = time.monotonic() - began
        assert answer.case.case_id == name


async def finished(call: Taken) -> str:
    """How a call ended."""
    return (await call.code()).name


def compare(daemon: Sidecar) -> None:
    """Every case is whole: a dense history that begins once and stands at its first task."""
    with daemon.stubs() as stubs:
        for case_id in case_ids(stubs):
            kinds = [event.event_type for event in history(stubs, case_id)]
            assert kinds.count("case_created") == kinds.count("item_offered") == 1
