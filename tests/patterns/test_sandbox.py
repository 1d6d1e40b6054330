"""Executing patterns through the engine: in memory, durable, streamed, in lists; and everything that can be wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from knhk_workflow import (
    AlreadyExists,
    CallMeta,
    CaseFilter,
    DeadlineExceeded,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PatternExecutionContext,
    PatternResult,
    RequestMismatch,
    StateStore,
    Stimulus,
    Unsupported,
    VirtualClock,
    WorkflowEngine,
)
from knhk_workflow.patterns.catalogue import PATTERNS

RUN = [pattern.number for pattern in PATTERNS if pattern.available]


@pytest.fixture
async def engine() -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(StateStore(":memory:"), clock=VirtualClock()) as engine:
        yield engine


def asked(
    *moves: str, durable: bool = False, case_id: str = "", data: bytes = b"", **variables: str
) -> PatternExecutionContext:
    """A context whose script is written as `complete A {"ok": true}`."""
    script = []
    for move in moves:
        verb, task, output = (*move.split(" ", 2), "", "")[:3]
        script.append(Stimulus(verb, task, data=output.encode()))
    return PatternExecutionContext(
        case_id=case_id, variables=variables, data=data, script=tuple(script), durable=durable
    )


def happened(result: PatternResult) -> list[str]:
    """The completions in a trace."""
    return [
        str(msgspec.json.decode(event.data)["task"]) for event in result.trace if event.event_type == "task_completed"
    ]


async def test_the_catalogue_is_there(engine: WorkflowEngine) -> None:
    assert [view.pattern_id for view in engine.list_patterns()] == list(range(1, 44))
    assert engine.get_pattern("Cancel Activity").pattern_id == 19
    assert engine.get_pattern(3).name == "Synchronization"
    with pytest.raises(NotFound):
        engine.get_pattern(0)


async def test_the_founding_call_works() -> None:
    engine = WorkflowEngine(StateStore(":memory:"))
    context = PatternExecutionContext(case_id="case-1", workflow_id="workflow-1", variables={"key": "value"})
    result = await engine.execute_workflow_pattern(1, context)
    await engine.close()
    assert result.success
    assert result.case_id == "case-1"
    assert result.variables == {"key": "value"}
    assert happened(result) == ["A", "B", "C"]


@pytest.mark.parametrize("number", RUN)
async def test_a_durable_run_tells_the_same_as_one_in_memory(engine: WorkflowEngine, number: int) -> None:
    passing = await engine.execute_pattern(number, asked(case_id="one"))
    kept = await engine.execute_pattern(number, asked(case_id="one", durable=True))
    assert kept.success
    assert [event.event_type for event in kept.trace] == [event.event_type for event in passing.trace]
    assert (kept.next_state, kept.updates, kept.variables, kept.cancel_activities) == (
        passing.next_state,
        passing.updates,
        passing.variables,
        passing.cancel_activities,
    )
    case = await engine.get_case("one")
    assert case.spec_id == f"wcp-{number:02}"
    assert case.state == passing.next_state


async def test_a_run_in_memory_touches_no_case(engine: WorkflowEngine) -> None:
    await engine.execute_pattern(2, asked(case_id="one"))
    assert (await engine.list_cases(CaseFilter())).items == ()
    with pytest.raises(NotFound):
        await engine.get_case("one")


async def test_variables_are_texts_and_data_win_over_them(engine: WorkflowEngine) -> None:
    script = ("complete A",)
    by_text = await engine.execute_pattern(4, asked(*script, p1="false", p2="true"))
    assert by_text.next_activities == ("C",)
    by_data = await engine.execute_pattern(4, asked(*script, p1="true", data=b'{"p1": false, "n": 3}'))
    assert by_data.next_activities == ("D",)
    assert by_data.variables == {"p1": "false", "n": "3"}
    assert not by_data.terminates
    assert by_data.success


async def test_updates_are_what_the_run_changed(engine: WorkflowEngine) -> None:
    result = await engine.execute_pattern(1, asked('complete A {"x": 1, "y": "same"}', y="same"))
    assert msgspec.json.decode(result.updates) == {"x": 1}
    assert result.variables == {"x": "1", "y": "same"}


async def test_what_was_withdrawn_is_told(engine: WorkflowEngine) -> None:
    result = await engine.execute_pattern(43, asked("complete A", "start C", "complete B"))
    assert result.cancel_activities == ("C",)
    assert result.success
    assert result.terminates
    cancelled = await engine.execute_pattern(2, asked("complete A", "start B", "cancel_case"))
    assert cancelled.next_state == "cancelled"
    assert cancelled.cancel_activities == ("B", "C")
    assert cancelled.success


@pytest.mark.parametrize("durable", [False, True])
async def test_a_move_that_the_net_does_not_allow_ends_the_run(engine: WorkflowEngine, durable: bool) -> None:
    result = await engine.execute_pattern(2, asked("complete A", "complete A", "complete B", durable=durable))
    assert not result.success
    assert happened(result) == ["A"]
    assert result.next_activities == ("B", "C")
    assert result.message == (
        "script[1]: cannot complete A: it must be offered or allocated or started, but no such work is open; "
        "open are B (offered), C (offered)"
    )
    suspended = await engine.execute_pattern(2, asked("complete A", "suspend", "start B", durable=durable))
    assert not suspended.success
    assert suspended.next_state == "suspended"
    assert suspended.message.startswith("script[2]: cannot start B: case ")
    started = await engine.execute_pattern(1, asked("start A", "start A", durable=durable))
    assert "it must be offered or allocated, but it is started; open are A (started)" in started.message


@pytest.mark.parametrize("durable", [False, True])
async def test_an_incident_is_no_success(engine: WorkflowEngine, durable: bool) -> None:
    result = await engine.execute_pattern(
        1, asked('fail A {"code": "rejected", "message": "out of stock"}', durable=durable)
    )
    assert not result.success
    assert result.next_state == "running"
    assert "task 'A' failed: rejected: out of stock" in result.message


async def test_suspend_and_resume_and_skip(engine: WorkflowEngine) -> None:
    result = await engine.execute_pattern(
        1, asked("start A", "suspend", "complete A", "resume", "skip B", "complete C")
    )
    assert result.success
    assert happened(result) == ["A", "B", "C"]


async def test_the_number_of_an_open_item_chooses_it(engine: WorkflowEngine) -> None:
    script = (
        *asked("complete A", "complete B", "complete C").script,
        Stimulus("start", "D", "2"),
        Stimulus("complete", "D", "2"),
    )
    result = await engine.execute_pattern(8, PatternExecutionContext(script=script))
    done = [event for event in result.trace if event.event_type == "item_completed" and b'"task":"D"' in event.data]
    assert [msgspec.json.decode(event.data)["activation"] for event in done] == [5]
    assert result.next_activities == ("D",)


async def test_every_move_is_checked_before_anything_runs(engine: WorkflowEngine) -> None:
    wrong = {
        "script[1].move": Stimulus("flee", "A"),
        "script[1].task": Stimulus("complete", "X"),
        "script[1].data_json": Stimulus("complete", "A", data=b"[1]"),
        "script[1].name": Stimulus("complete", "A", "first"),
        "script[2].task": Stimulus("trigger", "A", "go"),
        "script[3].name": Stimulus("trigger"),
        "script[4].task": Stimulus("add_instance", "A"),
        "script[5].name": Stimulus("cancel_task", "A", "1"),
        "script[6].data_json": Stimulus("cancel_task", "A", data=b"{}"),
    }
    for path, move in wrong.items():
        before = (Stimulus("start", "A"),) * int(path[len("script[")])
        context = PatternExecutionContext(case_id="kept", script=(*before, move), durable=True)
        with pytest.raises(InvalidInput) as refused:
            await engine.execute_pattern(1, context)
        assert refused.value.problems[0].path.startswith(path)
    assert (await engine.list_cases()).items == ()
    advance = (Stimulus("advance_clock", name="90s"),)
    with pytest.raises(Unsupported, match="advance_clock"):
        await engine.execute_pattern(1, PatternExecutionContext(script=advance, durable=True))
    with pytest.raises(LimitExceeded):
        await engine.execute_pattern(1, PatternExecutionContext(script=(Stimulus("start", "A"),) * 1_001))
    with pytest.raises(InvalidInput):
        await engine.execute_pattern(1, PatternExecutionContext(data=b'{"a": 1, "a": 2}'))


async def test_what_cannot_be_executed_says_so(engine: WorkflowEngine) -> None:
    for pattern in PATTERNS:
        if not pattern.available:
            with pytest.raises(Unsupported) as refused:
                await engine.execute_pattern(pattern.number)
            assert f"pattern {pattern.number} ({pattern.name})" in str(refused.value)
    for number in (0, 44, -1, "teleport"):
        with pytest.raises(InvalidInput) as unknown:
            await engine.execute_pattern(number)
        assert unknown.value.problems[0].path == "pattern_id"


async def test_a_taken_case_id_is_refused(engine: WorkflowEngine) -> None:
    await engine.execute_pattern(1, asked(case_id="one", durable=True))
    with pytest.raises(AlreadyExists):
        await engine.execute_pattern(2, asked(case_id="one", durable=True))


async def test_a_repeated_request_makes_no_move_twice(engine: WorkflowEngine) -> None:
    meta = CallMeta(request_id="r-1", method="ExecutePattern")
    first = await engine.execute_pattern(3, asked(durable=True), meta=meta)
    again = await engine.execute_pattern(3, asked(durable=True), meta=meta)
    assert again == first
    assert len((await engine.list_cases()).items) == 1
    with pytest.raises(RequestMismatch):
        await engine.execute_pattern(3, asked(durable=True, x="1"), meta=meta)


async def test_an_interrupted_run_is_taken_up_by_its_request_id(engine: WorkflowEngine) -> None:
    meta = CallMeta(request_id="r-1", method="ExecutePattern")
    running = asyncio.create_task(engine.execute_pattern(3, asked(case_id="one", durable=True), meta=meta))
    case_sequence = 0
    while case_sequence < 8:
        await asyncio.sleep(0)
        try:
            case_sequence = (await engine.get_case("one")).sequence
        except NotFound:
            case_sequence = 0
    running.cancel()
    await asyncio.wait([running])
    result = await engine.execute_pattern(3, asked(case_id="one", durable=True), meta=meta)
    assert result.success
    assert happened(result) in (["A", "B", "C", "D"], ["A", "C", "B", "D"])


async def test_a_script_lets_time_pass(engine: WorkflowEngine) -> None:
    moves = (Stimulus("complete", "A"), Stimulus("advance_clock", name="59m"), Stimulus("advance_clock", name="PT1M"))
    result = await engine.execute_pattern(16, PatternExecutionContext(script=moves))
    assert result.success
    assert happened(result) == ["A", "T"]
    assert result.next_state == "completed"
    events = {event.event_type: event for event in result.trace}
    waited = events["timer_fired"].timestamp - events["timer_armed"].timestamp
    assert 3_600 * 10**9 <= waited < 3_601 * 10**9
    result = await engine.execute_pattern(16, PatternExecutionContext(script=(*moves[:2], Stimulus("start", "B"))))
    assert [event.event_type for event in result.trace].count("timer_disarmed") == 1


async def test_a_list_is_answered_one_by_one(engine: WorkflowEngine) -> None:
    later = PatternExecutionContext(script=(Stimulus("advance_clock"),))  # how long it does not say
    answers = await engine.execute_patterns([(1, asked()), (6, later), ("AND-split", asked())])
    assert [answer.pattern_id if isinstance(answer, PatternResult) else type(answer) for answer in answers] == [
        1,
        InvalidInput,
        2,
    ]


async def test_the_trace_can_be_watched_as_it_happens(engine: WorkflowEngine) -> None:
    run = engine.pattern_run(2)
    with pytest.raises(RuntimeError):
        _ = run.result
    seen = [event async for event in run]
    assert tuple(seen) == run.result.trace
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert run.result.success


async def test_the_deadline_of_the_caller_counts() -> None:
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        meta = CallMeta(deadline=clock.now())
        clock.advance(1)
        with pytest.raises(DeadlineExceeded):
            await engine.execute_pattern(1, meta=meta)


async def test_a_durable_run_belongs_to_its_tenant(engine: WorkflowEngine) -> None:
    meta = CallMeta(tenant="acme")
    await engine.execute_pattern(1, asked(case_id="one", durable=True), meta=meta)
    assert (await engine.get_case("one", meta=meta)).state == "completed"
    with pytest.raises(NotFound):
        await engine.get_case("one")
