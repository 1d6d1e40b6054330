"""Each stage on the real road: who is let in, what is bounded, what errors become, what is told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import timedelta

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from knhk_sidecar.api import pb
from knhk_sidecar.api.faults import Unauthenticated
from knhk_sidecar.identity.certificate import Bundles, LeafCheck
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import ANONYMOUS
from knhk_sidecar.identity.spiffe_id import TrustDomain
from knhk_sidecar.pipeline import Limits, Refusal
from knhk_sidecar.pipeline.stages import STRANGERS_A_SECOND, STRANGERS_AT_ONCE
from knhk_workflow import CallMeta, InvalidInput, NotFound
from tests.sidecar.identity.authority import Authority, Wish
from tests.sidecar.pipeline.road import CASES, Road, eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Gate:
    """Holds calls until it is opened; counts those inside."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self._opened = asyncio.Event()

    async def __call__(self, request: pb.GetCaseRequest, meta: CallMeta) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self._opened.wait()
        finally:
            self.inside -= 1

    def open(self) -> None:
        self._opened.set()


async def fails(request: pb.GetCaseRequest, meta: CallMeta) -> None:
    raise NotFound("case", request.case_id)


async def breaks(request: pb.GetCaseRequest, meta: CallMeta) -> None:
    raise RuntimeError("the password is hunter2")


async def code_of(attempt: asyncio.Task[object]) -> str:
    try:
        await attempt
    except Refusal as refusal:
        return refusal.code.name
    return "OK"


# ----------------------------------------------------------------------------------------------------------- identify
async def test_a_certificate_makes_the_principal() -> None:
    authority = Authority()
    road = Road(
        plain=ANONYMOUS,
        leaves=LeafCheck(Bundles.parse({TrustDomain("a.org"): authority.pem})),
        policies=Policies.without_file("a.org", "viewer"),
    )
    await road.get(leaf=authority.issue()[0])
    (meta,) = road.cases.metas
    assert (meta.principal, meta.tenant) == ("spiffe://a.org/web", "default")


@pytest.mark.parametrize(
    "wish", [Wish(uris=("spiffe://a.org/web?role=admin",)), Wish(begins=timedelta(hours=-2), ends=timedelta(hours=-1))]
)
async def test_a_bad_certificate_is_nobody_and_is_not_told_why(wish: Wish) -> None:
    authority = Authority()
    road = Road(leaves=LeafCheck(Bundles.parse({TrustDomain("a.org"): authority.pem})))
    with pytest.raises(Refusal) as caught:
        await road.get(leaf=authority.issue(wish)[0])
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert "expired" not in caught.value.fault.message
    assert isinstance(caught.value.error, Unauthenticated)
    assert caught.value.error.rule.startswith(("certificate-validity: has expired", "certificate-spiffe-id: has an id"))
    assert road.cases.metas == []
    assert "certificate_refused" in road.lines.getvalue()


async def test_strangers_cannot_fill_the_log() -> None:
    authority = Authority()
    leaves = LeafCheck(Bundles.parse({TrustDomain("a.org"): authority.pem}))
    road = Road(leaves=leaves, level="info")
    begun = time.monotonic()
    for _ in range(STRANGERS_AT_ONCE + 200):
        with pytest.raises(Refusal):
            await road.get(leaf=b"no certificate")
    most = STRANGERS_AT_ONCE + STRANGERS_A_SECOND * (time.monotonic() - begun)
    events = Counter(json.loads(line)["event"] for line in road.lines.getvalue().splitlines())
    for event in ("call", "certificate_refused"):
        assert STRANGERS_AT_ONCE <= events[event] <= most + 1
    assert road.counters.calls() == {(f"/{CASES}/GetCase", "UNAUTHENTICATED"): STRANGERS_AT_ONCE + 200}


async def test_a_plain_caller_is_what_the_listener_says_whatever_it_claims() -> None:
    road = Road()
    claims = (("x-forwarded-client-cert", "URI=spiffe://knhk.dev/admin"), ("x-principal", "spiffe://knhk.dev/admin"))
    await road.get(metadata=claims)
    assert road.cases.metas[0].principal == "spiffe://knhk.dev/dev/local"


@pytest.mark.parametrize("leaf", [None, b"no certificate"])
async def test_who_is_unknown_is_refused_before_there_is_a_request(leaf: bytes | None) -> None:
    """Counted and recorded like any other denial, and looked at once."""
    authority = Authority()
    leaves = LeafCheck(Bundles.parse({TrustDomain("a.org"): authority.pem}))
    road = Road(plain=ANONYMOUS, leaves=leaves, audited=True)
    call = road.call("GetCase", leaf=leaf)
    with pytest.raises(Refusal) as caught:
        await road.pipeline.identify(call)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    (operation,) = road.operations
    assert (operation.method, operation.outcome) == (f"{CASES}/GetCase", "UNAUTHENTICATED")
    assert road.counters.calls() == {(f"/{CASES}/GetCase", "UNAUTHENTICATED"): 1}
    assert road.lines.getvalue().count("certificate_refused") == (leaf is not None)
    assert road.cases.metas == []


async def test_who_is_known_already_is_not_asked_again() -> None:
    authority = Authority()
    leaves = LeafCheck(Bundles.parse({TrustDomain("a.org"): authority.pem}))
    road = Road(plain=ANONYMOUS, leaves=leaves, policies=Policies.without_file("a.org", "viewer"))
    call = road.call("GetCase", leaf=authority.issue()[0])
    await road.pipeline.identify(call)
    call.leaf = b"nothing that anybody could read"
    await road.pipeline.run(call, pb.GetCaseRequest(case_id="c"))
    assert road.cases.metas[0].principal == "spiffe://a.org/web"


async def test_a_request_that_cannot_be_handed_over_is_a_call_all_the_same() -> None:
    road = Road(audited=True)
    call = road.call("CreateCase")
    await road.pipeline.identify(call)
    with pytest.raises(Refusal) as caught:
        await road.pipeline.refuse(call, InvalidInput.field("spec_id", "is no text"))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    (operation,) = road.operations
    assert (operation.principal, operation.outcome) == ("spiffe://knhk.dev/dev/local", "INVALID_ARGUMENT")


# ---------------------------------------------------------------------------------------------------------- authorize
async def test_nobody_may_do_nothing() -> None:
    road = Road(plain=ANONYMOUS)
    with pytest.raises(Refusal) as caught:
        await road.get()
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert road.cases.metas == []


async def test_a_method_without_permission_is_nobodys() -> None:
    road = Road()
    call = road.call("GetCase")
    call.method = dataclasses.replace(call.method, permission=None)
    with pytest.raises(Refusal) as caught:
        await road.pipeline.run(call, pb.GetCaseRequest())
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert road.cases.metas == []


# -------------------------------------------------------------------------------------------------------------- admit
async def test_beyond_the_limits_calls_wait_in_order_and_then_are_refused() -> None:
    gate = Gate()
    road = Road(gate, limits=Limits(in_flight=2, queued=3))
    calls = [asyncio.ensure_future(road.get(str(number))) for number in range(6)]
    await eventually(calls[5].done)
    refusal = calls[5].exception()
    assert isinstance(refusal, Refusal)
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(refusal.fault.trailing)
    assert int(trailing["grpc-retry-pushback-ms"]) > 0
    details = status_pb2.Status.FromString(bytes(trailing["grpc-status-details-bin"])).details  # type: ignore[arg-type]
    assert any(detail.Unpack(error_details_pb2.RetryInfo()) for detail in details)
    gate.open()
    await asyncio.gather(*calls[:5])
    assert gate.most == 2
    assert len(road.cases.metas) == 5


async def test_what_expired_while_it_waited_is_not_begun() -> None:
    gate = Gate()
    road = Road(gate, limits=Limits(in_flight=1, queued=5))
    first = asyncio.ensure_future(road.get("first"))
    await eventually(lambda: gate.inside == 1)
    late = asyncio.ensure_future(road.get("late", deadline=road.clock.time + 10))
    await asyncio.sleep(0)
    road.clock.time += 11
    gate.open()
    assert await code_of(first) == "OK"
    assert await code_of(late) == "DEADLINE_EXCEEDED"
    assert len(road.cases.metas) == 1


async def test_a_call_cancelled_in_the_queue_leaves_its_place_to_the_next() -> None:
    gate = Gate()
    road = Road(gate, limits=Limits(in_flight=1, queued=2))
    calls = [asyncio.ensure_future(road.get(str(number))) for number in range(3)]
    await eventually(lambda: gate.inside == 1)
    calls[1].cancel()
    await asyncio.sleep(0)
    more = asyncio.ensure_future(road.get("3"))
    await asyncio.sleep(0)
    gate.open()
    await asyncio.gather(calls[0], calls[2], more)
    with pytest.raises(asyncio.CancelledError):
        await calls[1]
    assert (road.pipeline._admit.in_flight, road.pipeline._admit.queued) == (0, 0)


async def test_a_call_cancelled_as_its_turn_comes_gives_it_back() -> None:
    gate = Gate()
    road = Road(gate, limits=Limits(in_flight=1, queued=2))
    first = asyncio.ensure_future(road.get("0"))
    second = asyncio.ensure_future(road.get("1"))
    await eventually(lambda: gate.inside == 1)
    first.cancel()
    await asyncio.sleep(0)
    second.cancel()  # whether it was granted its place already or not
    await asyncio.gather(first, second, return_exceptions=True)
    gate.open()
    await road.get("2")
    assert road.pipeline._admit.in_flight == 0


async def test_waiting_for_a_case_does_not_count_as_work() -> None:
    gate = Gate()
    road = Road(gate, limits=Limits(in_flight=1, queued=0, waiting=2))
    waits = [
        asyncio.ensure_future(road.pipeline.run(road.call("WaitCase"), pb.WaitCaseRequest(case_id="c")))
        for _ in range(3)
    ]
    await eventually(waits[2].done)
    assert await code_of(waits[2]) == "RESOURCE_EXHAUSTED"
    await road.pipeline.run(road.call("CreateCase"), pb.CreateCaseRequest(spec_id="s"))
    gate.open()
    await asyncio.gather(*waits[:2])


async def test_streams_are_bounded_per_connection() -> None:
    gate = Gate()
    road = Road(gate, limits=Limits(streams_per_connection=2))

    def watch(peer: str) -> asyncio.Task[object]:
        return asyncio.ensure_future(road.pipeline.run(road.call("WatchCase", peer=peer), pb.WatchCaseRequest()))

    watches = [watch("a"), watch("a"), watch("b")]
    await eventually(lambda: gate.inside == 3)
    assert await code_of(watch("a")) == "RESOURCE_EXHAUSTED"
    gate.open()
    await asyncio.gather(*watches)
    assert await code_of(watch("a")) == "OK"
    assert len(road.sent) == 8


async def test_going_down_ends_watches_first_and_working_streams_later() -> None:
    gate = Gate()
    road = Road(gate)

    async def requests() -> AsyncIterator[pb.StreamRunCaseRequest]:
        yield pb.StreamRunCaseRequest(correlation_id="1")

    watch = asyncio.ensure_future(road.pipeline.run(road.call("WatchCase"), pb.WatchCaseRequest()))
    work = asyncio.ensure_future(road.pipeline.run(road.call("StreamRunCase"), requests()))
    await eventually(lambda: gate.inside == 2)
    road.pipeline.end_streams(working=False)
    assert await code_of(watch) == "UNAVAILABLE"
    assert not work.done()
    assert await code_of(asyncio.ensure_future(road.pipeline.run(road.call("WatchCase"), pb.WatchCaseRequest()))) == (
        "UNAVAILABLE"
    )
    road.pipeline.end_streams(working=True)
    assert await code_of(work) == "UNAVAILABLE"
    gate.open()
    assert await code_of(asyncio.ensure_future(road.get())) == "OK"


# ---------------------------------------------------------------------------------------------------------- translate
async def test_an_error_of_the_engine_is_told() -> None:
    road = Road(fails)
    with pytest.raises(Refusal) as caught:
        await road.get("nothing")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert "nothing" in caught.value.fault.message


async def test_any_other_exception_is_an_id_for_the_caller_and_a_stack_for_the_log() -> None:
    road = Road(breaks)
    with pytest.raises(Refusal) as caught:
        await road.get()
    assert caught.value.code is grpc.StatusCode.INTERNAL
    told = caught.value.fault.message
    assert "hunter2" not in told
    assert "Traceback" not in told
    lines = [json.loads(line) for line in road.lines.getvalue().splitlines()]
    (logged,) = (line for line in lines if line["event"] == "internal_error")
    assert logged["error_id"] in told
    assert "Traceback" in logged["exception"]


async def test_a_method_that_is_not_there_names_itself() -> None:
    road = Road()
    with pytest.raises(Refusal) as caught:
        await road.pipeline.run(road.call("PurgeCases"), pb.PurgeCasesRequest())
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert "CaseService.PurgeCases" in caught.value.fault.message


async def test_cancelling_is_no_error() -> None:
    gate = Gate()
    road = Road(gate)
    call = asyncio.ensure_future(road.get())
    await eventually(lambda: gate.inside == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert road.counters.calls() == {(f"/{CASES}/GetCase", "CANCELLED"): 1}


# ------------------------------------------------------------------------------------------------------------ observe
async def test_a_good_call_is_a_line_at_debug_only() -> None:
    quiet, loud = Road(level="info"), Road(level="debug")
    trace = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),)
    await loud.get("c-1", metadata=trace)
    (line,) = (json.loads(line) for line in loud.lines.getvalue().splitlines())
    assert {key: line[key] for key in ("event", "operation", "code", "principal", "case_id", "trace_id", "level")} == {
        "event": "call",
        "operation": "GetCase",
        "code": "OK",
        "principal": "spiffe://knhk.dev/dev/local",
        "case_id": "c-1",
        "trace_id": TRACE,
        "level": "debug",
    }
    assert line["duration_ms"] >= 0
    quiet.log.set_level("info")
    await quiet.get("c-1")
    assert quiet.lines.getvalue() == ""
    assert loud.cases.metas[0].trace_id == TRACE


async def test_a_failed_call_is_a_line_at_info() -> None:
    road = Road(fails, level="info")
    with pytest.raises(Refusal):
        await road.get("c\nlevel=error event=forged \x9b31m")
    (text,) = road.lines.getvalue().splitlines()
    line = json.loads(text)
    assert (line["code"], line["reason"], line["level"]) == ("NOT_FOUND", "NOT_FOUND", "info")
    assert text.isascii()
    assert text.isprintable()


async def test_everything_is_counted() -> None:
    road = Road()
    for _ in range(3):
        await road.get()
    text = road.counters.prometheus()
    assert f'knhk_call_duration_seconds_count{{method="/{CASES}/GetCase",code="OK"}} 3' in text
    assert "knhk_calls_in_flight 0" in text


# ------------------------------------------------------------------------------------------------------ the road itself
async def test_a_request_id_reaches_the_engine() -> None:
    road = Road()
    request = pb.CreateCaseRequest(spec_id="s", request_id="r-1")
    await road.pipeline.run(road.call("CreateCase", deadline=road.clock.time + 5), request)
    (meta,) = road.cases.metas
    assert (meta.request_id, meta.method) == ("r-1", f"/{CASES}/CreateCase")
    assert meta.deadline == road.clock.time + 5


def test_a_caller_without_deadline_gets_the_default_one() -> None:
    road = Road(limits=Limits(timeout=7))
    assert road.pipeline.deadline(None) == road.clock.time + 7
    assert road.pipeline.deadline(2.0) == road.clock.time + 2_000_000_000


async def test_the_trace_is_looked_for_once() -> None:
    class Counted(tuple[tuple[str, str], ...]):
        looks = 0

        def __iter__(self) -> Iterator[tuple[str, str]]:
            Counted.looks += 1
            return super().__iter__()

    road = Road(level="debug")
    call = road.call("GetCase", metadata=Counted((("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),)))
    await road.pipeline.run(call, pb.GetCaseRequest(case_id="c"))
    assert (call.trace_id, Counted.looks) == (TRACE, 1)


class Archive:
    """An admin service whose Backup goes on until the test lets it end."""

    def __init__(self) -> None:
        self.gate = Gate()

    async def backup(self, request: pb.BackupRequest, meta: CallMeta) -> AsyncGenerator[pb.BackupResponse, None]:
        yield pb.BackupResponse(chunk=b"1")
        await self.gate(pb.GetCaseRequest(), meta)
        yield pb.BackupResponse(chunk=b"2")


@pytest.mark.parametrize("working", [False, True])
async def test_a_download_has_until_working_streams_end(working: bool) -> None:
    archive, service = Archive(), "knhk.sidecar.v1.AdminService"
    road = Road(services={service: archive})
    call = road.call("Backup", service=service)
    download = asyncio.ensure_future(road.pipeline.run(call, pb.BackupRequest()))
    await eventually(lambda: archive.gate.inside == 1)
    road.pipeline.end_streams(working=working)
    archive.gate.open()
    assert await code_of(download) == ("UNAVAILABLE" if working else "OK")
