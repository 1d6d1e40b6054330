"""The catalogue, and running patterns."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.sidecar.services.server import Sidecar, info_of, refused

NOW = (1, 2, 3, 4, 5, 8, 10, 11, 22, 33, 43)


async def test_the_catalogue_is_complete_and_paged(running: Sidecar) -> None:
    everything = (await running.patterns.ListPatterns(pb.ListPatternsRequest())).patterns
    assert [one.pattern_id for one in everything] == list(range(1, 44))
    assert all(one.name and one.category and not one.net_json for one in everything)
    ids, token = [], ""
    while True:
        page = await running.patterns.ListPatterns(pb.ListPatternsRequest(page_size=10, page_token=token))
        ids += [one.pattern_id for one in page.patterns]
        token = page.next_page_token
        if not token:
            break
    assert ids == list(range(1, 44))
    category = everything[0].category
    some = await running.patterns.ListPatterns(pb.ListPatternsRequest(category=category))
    assert {one.category for one in some.patterns} == {category}
    bad = await refused(running.patterns.ListPatterns(pb.ListPatternsRequest(page_token="x")))
    assert bad.fields == ["page_token"]


async def test_a_pattern_comes_with_its_net_and_script(running: Sidecar) -> None:
    one = (await running.patterns.GetPattern(pb.GetPatternRequest(pattern_id=2))).pattern
    assert (one.name, one.available) == ("Parallel Split", True)
    assert json.loads(one.net_json)["tasks"]
    unknown = await refused(running.patterns.GetPattern(pb.GetPatternRequest(pattern_id=44)))
    assert unknown.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("number", NOW)
async def test_every_pattern_of_now_runs_by_its_own_script(running: Sidecar, number: int) -> None:
    answer = await running.patterns.ExecutePattern(pb.ExecutePatternRequest(pattern_id=number))
    assert answer.success, answer.message
    assert answer.trace
    assert answer.next_state


async def test_variables_are_texts_and_come_back(running: Sidecar) -> None:
    answer = await running.patterns.ExecutePattern(
        pb.ExecutePatternRequest(pattern_id=1, case_id="mine", variables={"a": "1"})
    )
    assert answer.variables["a"] == "1"
    assert answer.case_id == "mine"


async def test_an_unknown_number_and_a_later_pattern_are_told_apart(running: Sidecar) -> None:
    for number in (0, 44):
        refusal = await refused(running.patterns.ExecutePattern(pb.ExecutePatternRequest(pattern_id=number)))
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["pattern_id"])
    catalogue = (await running.patterns.ListPatterns(pb.ListPatternsRequest())).patterns
    for one in catalogue:
        if not one.available:
            request = pb.ExecutePatternRequest(pattern_id=one.pattern_id)
            refusal = await refused(running.patterns.ExecutePattern(request))
            assert refusal.code is grpc.StatusCode.UNIMPLEMENTED
            assert one.name in refusal.info.metadata["feature"]


async def test_a_list_and_a_stream_of_runs_fail_one_by_one(running: Sidecar) -> None:
    runs = [
        pb.ExecutePatternRequest(pattern_id=1),
        pb.ExecutePatternRequest(pattern_id=99),
        pb.ExecutePatternRequest(pattern_id=2, request_id="own"),
        pb.ExecutePatternRequest(pattern_id=1, data_json=b"[]"),
    ]
    listed = await running.patterns.ExecutePatterns(pb.ExecutePatternsRequest(executions=runs))
    assert [result.WhichOneof("outcome") for result in listed.results] == ["response", "error", "response", "error"]

    async def requests() -> AsyncIterator[pb.StreamExecutePatternRequest]:
        for n, run in enumerate(runs):
            yield pb.StreamExecutePatternRequest(correlation_id=str(n), execution=run)

    answers = {answer.correlation_id: answer async for answer in running.patterns.StreamExecutePattern(requests())}
    assert [answers[str(n)].WhichOneof("outcome") for n in range(4)] == ["response", "error", "response", "error"]
    assert info_of(answers["3"].error).reason == "INVALID_ARGUMENT"


@pytest.mark.parametrize("durable", [False, True])
async def test_a_live_run_tells_its_trace_before_its_answer(running: Sidecar, durable: bool) -> None:
    run = pb.ExecutePatternRequest(pattern_id=3, case_id="live", durable=durable)

    async def requests() -> AsyncIterator[pb.StreamExecutePatternRequest]:
        yield pb.StreamExecutePatternRequest(correlation_id="1", execution=run, live=True)
        yield pb.StreamExecutePatternRequest(correlation_id="2", execution=pb.ExecutePatternRequest(), live=True)

    answers = [answer async for answer in running.patterns.StreamExecutePattern(requests())]
    kinds = [answer.WhichOneof("outcome") for answer in answers if answer.correlation_id == "1"]
    assert kinds == ["event"] * (len(kinds) - 1) + ["response"]
    assert [answer.WhichOneof("outcome") for answer in answers if answer.correlation_id == "2"] == ["error"]
    told = [answer.event for answer in answers if answer.WhichOneof("outcome") == "event"]
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))
    (last,) = (answer.response for answer in answers if answer.WhichOneof("outcome") == "response")
    assert (last.success, last.next_state, list(last.trace)) == (True, "completed", [])
    if not durable:
        whole = await running.patterns.ExecutePattern(run)
        assert [event.event_type for event in whole.trace] == [event.event_type for event in told]


async def test_a_live_run_that_nobody_reads_leaves_nothing_behind(running: Sidecar) -> None:
    async def requests() -> AsyncIterator[pb.StreamExecutePatternRequest]:
        for number in range(200):
            run = pb.ExecutePatternRequest(pattern_id=1 + number % 43)
            yield pb.StreamExecutePatternRequest(correlation_id=str(number), execution=run, live=True)

    call = running.patterns.StreamExecutePattern(requests())
    assert (await anext(aiter(call))).correlation_id
    call.cancel()
    assert (await running.patterns.ExecutePattern(pb.ExecutePatternRequest(pattern_id=1))).success


async def test_a_durable_run_is_a_case(running: Sidecar) -> None:
    request = pb.ExecutePatternRequest(pattern_id=1, case_id="kept", durable=True)
    answer = await running.patterns.ExecutePattern(request)
    assert answer.case_id == "kept"
    case = (await running.cases.GetCase(pb.GetCaseRequest(case_id="kept"))).case
    assert case.state == pb.CASE_STATE_COMPLETED
    assert (await refused(running.patterns.ExecutePattern(request))).code is grpc.StatusCode.ALREADY_EXISTS


async def test_durable_runs_of_a_list_are_kept_once_and_begun_in_order(running: Sidecar) -> None:
    runs = [pb.ExecutePatternRequest(pattern_id=1, case_id=f"p-{n}", durable=True) for n in range(20)]
    runs.append(pb.ExecutePatternRequest(pattern_id=2, case_id="p-0", durable=True))
    request = pb.ExecutePatternsRequest(executions=runs, request_id="list")
    for _ in range(2):  # the second time is the same
        results = (await running.patterns.ExecutePatterns(request)).results
        assert [result.response.case_id for result in results[:20]] == [f"p-{n}" for n in range(20)]
        assert info_of(results[20].error).reason == "ALREADY_EXISTS"
    assert len((await running.cases.ListCases(pb.ListCasesRequest())).cases) == 20
