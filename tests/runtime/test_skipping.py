"""Skipping time: weeks in milliseconds, with everything that is due on the way in its order."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from knhk_workflow import (
    InvalidInput,
    ScheduleSpec,
    SkippingClock,
    StateStore,
    Unsupported,
    VirtualClock,
    WorkflowEngine,
)
from tests.runtime.place import CLERK, KeptStore, item_of, registered

DAY: Final = 24 * 3_600
NS: Final = 1_000_000_000
ROOT: Final = Path(__file__).parents[2]

REMINDED: Final[Mapping[str, object]] = {
    "id": "reminded",
    "tasks": {
        "pay": {"required_roles": CLERK, "timeout": "14d", "on_timeout": "remind", "split": "xor"},
        "remind": {"required_roles": CLERK},
        "wait": {"timer": "7d", "split": "xor", "out": {"waited": "data.waited + 1"}},
        "give_up": {},
    },
    "flows": [
        {"from": "start", "to": "pay"},
        {"from": "pay", "to": "remind", "when": "false"},
        {"from": "pay", "to": "end", "default": True},
        {"from": "remind", "to": "wait"},
        {"from": "wait", "to": "wait", "when": "data.waited < 3"},
        {"from": "wait", "to": "give_up", "default": True},
        {"from": "give_up", "to": "end"},
    ],
}


async def test_weeks_pass_from_one_moment_to_the_next(workflow_engine: WorkflowEngine) -> None:
    async with workflow_engine as engine:
        begin = engine.now()
        await registered(engine, REMINDED)
        case = await engine.run_case("reminded", {"waited": 0})
        view = await engine.advance_time("13d")
        assert (view.now - begin, view.stops, view.next - begin) == (13 * DAY * NS, 0, 14 * DAY * NS)
        assert [item.task_id for item in (await engine.get_case(case.case_id)).work] == ["pay"]
        view = await engine.advance_time()
        assert (view.now - begin, view.stops, view.next) == (14 * DAY * NS, 1, 0)
        await engine.complete_work_item(item_of(await engine.get_case(case.case_id), "remind").item_id)
        view = await engine.advance_time(until=begin + 100 * DAY * NS)
        assert (view.stops, view.next) == (3, 0), "each timer was armed when the one before had fired"
        ended = await engine.get_case(case.case_id)
        assert ended.state == "completed"
        assert ended.updated_at == begin + (14 + 21) * DAY * NS
        assert (await engine.advance_time()).now == begin + 100 * DAY * NS


async def test_schedules_come_one_by_one(workflow_engine: WorkflowEngine) -> None:
    async with workflow_engine as engine:
        await registered(engine, REMINDED)
        spec = ScheduleSpec("reminded", "0 9 * * MON", data=b'{"waited":0}', overlap="allow", catch_up="none")
        await engine.create_schedule("weekly", spec)
        view = await engine.advance_time("28d")
        assert (view.stops, (await engine.get_schedule("weekly")).started) == (4, 4), "time-outs are due with them"


async def test_only_where_time_can_be_moved() -> None:
    async with WorkflowEngine(StateStore(":memory:")) as engine:
        with pytest.raises(Unsupported):
            await engine.advance_time("1s")
    async with WorkflowEngine(StateStore(":memory:"), clock=VirtualClock()) as engine:
        for by, until in (("soon", 0), (-1.0, 0), ("1s", 5), (None, 1)):
            with pytest.raises(InvalidInput):
                await engine.advance_time(by, until=until)


async def test_time_that_runs_on_and_is_skipped_too() -> None:
    store = KeptStore()
    async with WorkflowEngine(StateStore.over(store), clock=SkippingClock()) as engine:
        await registered(engine, REMINDED)
        before = engine.now()
        await engine.run_case("reminded", {"waited": 0}, case_id="k")
        view = await engine.advance_time("20d")
        assert view.stops == 1
        assert 20 * DAY <= (view.now - before) / NS < 20 * DAY + 60
        assert item_of(await engine.get_case("k"), "remind").state == "offered"
    async with WorkflowEngine(StateStore.over(store), clock=SkippingClock()) as engine:
        assert engine.now() >= before + 14 * DAY * NS, "what was skipped stays skipped"
        clock = SkippingClock()
        woken = asyncio.Event()
        clock.call_at(clock.now() + DAY * NS, woken.set)
        clock.call_at(clock.now() + 2 * DAY * NS, lambda: pytest.fail("too early")).cancel()
        clock.skip_to(clock.now() + DAY * NS)
        async with asyncio.timeout(60):
            await woken.wait()
        assert clock.wall() - time.time_ns() > (DAY - 60) * NS


USER_TEST: Final = """
import asyncio

async def waits(workflow_engine):
    async with workflow_engine as engine:
        case = await engine.run_case(await registered(engine))
        await engine.advance_time("14d")
        assert (await engine.get_case(case.case_id)).state == "completed"

async def registered(engine):
    flows = [{"from": "start", "to": "wait"}, {"from": "wait", "to": "end"}]
    document = {"id": "trial", "tasks": {"wait": {"timer": "14d"}}, "flows": flows}
    return (await engine.register_workflow(document)).spec_id

def test_without_any_plugin_for_coroutines(workflow_engine):
    asyncio.run(waits(workflow_engine))

"""


@pytest.mark.long
def test_the_fixture_in_somebody_elses_tests(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"```python\n(async def test_.+?)```", readme, re.DOTALL)
    (tmp_path / "test_mine.py").write_text(USER_TEST + told)
    options = ["-q", "-p", "knhk_workflow.pytest_plugin", "-W", "error", "-o", "asyncio_mode=auto"]
    options += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_mine.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
