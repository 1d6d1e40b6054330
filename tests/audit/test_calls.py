"""Every call of the contract is in the audit once: effects by their commits, everything else by the pipeline."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from google.protobuf.message import Message

from knhk_sidecar.api import pb
from knhk_sidecar.api.services import services
from knhk_sidecar.identity.principal import ANONYMOUS, Principal
from knhk_sidecar.pipeline import Auditing, Call, Limits, Method, Pipeline, Refusal
from knhk_sidecar.pipeline.call import Request, methods_of
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import (
    AuditEntry,
    AuditFilter,
    CallMeta,
    ConnectorSetup,
    SigningKey,
    StateStore,
    WorkflowEngine,
)
from knhk_workflow.runtime import audit_stream
from tests.audit.conftest import SIGN
from tests.inside import parts
from tests.sidecar.services.server import daemon

CALLER = Principal("dev", "spiffe://example.org/caller")
METHODS = {path: method for service in pb.SERVICES for path, method in methods_of(service).items()}
EVERYTHING = AuditFilter()
WATCHES = ("WatchCases",)  # an empty request opens it, and it has no end
UNARY = [method for method in METHODS.values() if not method.streams]
MANY = {
    "id": "many",
    "tasks": {
        "each": {"required_roles": ["clerk"], "instances": {"min": 1, "max": 5, "create": "dynamic"}},
        "other": {"required_roles": ["clerk"]},
    },
    "flows": [
        {"from": "start", "to": "each"},
        {"from": "each", "to": "other"},
        {"from": "other", "to": "end"},
    ],
}


@dataclass
class Office:
    """The pipeline around real services over a real engine, without a transport."""

    engine: WorkflowEngine
    pipeline: Pipeline
    sent: list[Message] = field(default_factory=list)

    async def call(self, name: str, request: Request, *, peer: str = "ipv4:127.0.0.1:5") -> Message | None:
        method = next(each for each in METHODS.values() if each.name == name)

        async def send(message: Message) -> None:
            self.sent.append(message)

        trace = ("traceparent", f"00-{'cd' * 16}-{'12' * 8}-01")
        called = Call(method, protocol="grpc", peer=peer, metadata=(trace,), send=send)
        return await self.pipeline.run(called, request)

    async def refused(self, name: str) -> Refusal:
        """How a call with an empty request is refused."""
        method = next(each for each in METHODS.values() if each.name == name)
        with pytest.raises(Refusal) as caught:
            await self.call(name, method.request())
        return caught.value

    async def entries(self, wanted: AuditFilter = EVERYTHING) -> list[AuditEntry]:
        await parts(self.engine).stream.flush()
        found: list[AuditEntry] = []
        token = ""
        while True:
            page = await self.engine.list_audit(wanted, page_size=1000, page_token=token, meta=CallMeta())
            found += page.items
            token = page.next_token
            if not token:
                return found


def office_of(engine: WorkflowEngine, plain: Principal, reads: bool = True) -> Office:
    pipeline = Pipeline(
        METHODS,
        services(engine, daemon()),
        leaves=None,
        plain=plain,
        now=engine.now,
        log=Log("error", "json", io.StringIO()),
        counters=Counters(),
        limits=Limits(),
        auditing=Auditing(engine.record_operation, engine.record_again, engine.audit_full, reads),
    )
    return Office(engine, pipeline)


@pytest.fixture
async def engine() -> AsyncIterator[WorkflowEngine]:
    setup = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=("127.0.0.0/8",))
    async with WorkflowEngine(StateStore(":memory:"), connectors=setup) as opened:
        opened.sign_with(SigningKey.generate())
        yield opened


@pytest.fixture
def office(engine: WorkflowEngine) -> Office:
    return office_of(engine, CALLER)


async def outcome_of(office: Office, method: Method) -> str:
    request: Request = nothing() if method.client_streaming else method.request()
    before = len(office.sent)
    calling = asyncio.ensure_future(office.call(method.name, request))
    if method.name in WATCHES:
        async with asyncio.timeout(60):
            while len(office.sent) == before and not calling.done():  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0)
        calling.cancel()
    try:
        await asyncio.wait_for(calling, 60)
    except Refusal as refusal:
        return refusal.code.name
    except asyncio.CancelledError:
        pass  # it was let in, and watched
    return "OK"


async def nothing() -> AsyncIterator[Message]:
    never: tuple[Message, ...] = ()
    for each in never:
        yield each


async def test_every_call_leaves_one_entry_whatever_becomes_of_it(office: Office) -> None:
    """Asked with nothing in the request: most are refused, some answer."""
    for method in METHODS.values():
        name = method.path.removeprefix("/")
        outcome = await outcome_of(office, method)
        found = [entry.operation for entry in await office.entries(AuditFilter(method=name))]
        outcomes = [one.outcome for one in found]
        if method.streams and outcome != "OK" and "OK" in outcomes:
            outcomes.remove("OK")  # that it was opened; then how it ended
        if name.endswith("/ListAudit"):
            outcomes = outcomes[:1]  # by which all of this is asked in the daemon; here the engine is asked itself
        assert outcomes == [outcome], name
        assert {(one.principal, one.trace_id) for one in found} == {(CALLER.name, "cd" * 16)}, name


async def test_every_denial_is_found_with_its_peer(engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_stream, "GATHER_S", 3_600.0)  # like denials meet before they are written
    office = office_of(engine, ANONYMOUS)
    for method in METHODS.values():
        for _ in range(3):
            assert await outcome_of(office, method) == "UNAUTHENTICATED"
    found = [entry.operation for entry in await office.entries(AuditFilter(outcome="UNAUTHENTICATED"))]
    assert {one.method for one in found} == {path.removeprefix("/") for path in METHODS}
    assert len(found) == len(METHODS)
    for one in found:
        assert (one.principal, one.count, one.reason) == ("anonymous", 3, "UNAUTHENTICATED"), one.method
        assert one.peer == "ipv4:127.0.0.1:5"


async def test_reads_can_be_left_out_denials_and_effects_cannot(engine: WorkflowEngine) -> None:
    office = office_of(engine, CALLER, reads=False)
    await office.call("RegisterWorkflow", pb.RegisterWorkflowRequest(spec_json=document(SIGN)))
    await office.call("ListCases", pb.ListCasesRequest())
    assert await outcome_of(office, METHODS["/knhk.sidecar.v1.CaseService/GetCase"]) == "INVALID_ARGUMENT"
    await office_of(engine, ANONYMOUS, reads=False).refused("ListCases")
    found = [(one.operation.method[-16:], one.operation.outcome) for one in await office.entries()]
    assert sorted(found) == [("RegisterWorkflow", "OK"), ("seService/ListCases"[-16:], "UNAUTHENTICATED")]


async def test_when_the_audit_is_full_reads_are_refused_and_effects_are_not(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_stream, "ENTRIES_MAX", 1)
    await office.call("ListCases", pb.ListCasesRequest())
    refusal = await office.refused("ListCases")
    assert (refusal.code.name, refusal.error.reason) == ("RESOURCE_EXHAUSTED", "BUSY")
    await office.call("RegisterWorkflow", pb.RegisterWorkflowRequest(spec_json=document(SIGN)))
    await office.entries()
    await office.call("ListCases", pb.ListCasesRequest())


def document(spec: object) -> bytes:
    return json.dumps(spec).encode()


STEPS: list[tuple[str, Callable[[list[str]], Message], str, int]] = [
    ("RegisterWorkflow", lambda _: pb.RegisterWorkflowRequest(spec_json=document(SIGN)), "workflows/sign", 1),
    ("RegisterWorkflow", lambda _: pb.RegisterWorkflowRequest(spec_json=document(MANY)), "workflows/many", 1),
    ("CreateCase", lambda _: pb.CreateCaseRequest(spec_id="sign", case_id="a"), "cases/a", 1),
    ("StartCase", lambda _: pb.StartCaseRequest(case_id="a"), "cases/a", 1),
    ("SuspendCase", lambda _: pb.SuspendCaseRequest(case_id="a"), "cases/a", 1),
    ("ResumeCase", lambda _: pb.ResumeCaseRequest(case_id="a"), "cases/a", 1),
    ("UpdateCaseData", lambda _: pb.UpdateCaseDataRequest(case_id="a", data_json=b'{"n":1}'), "cases/a", 1),
    ("ExecuteCase", lambda _: pb.ExecuteCaseRequest(case_id="a"), "cases/a", 1),
    ("TriggerCase", lambda _: pb.TriggerCaseRequest(name="ring", case_id="a"), "cases/a", 1),
    ("TriggerCase", lambda _: pb.TriggerCaseRequest(name="ring", key="nobody"), "signals/ring", 1),
    ("ClaimWorkItem", lambda ids: pb.ClaimWorkItemRequest(item_id=ids[0], user="u"), "cases/a", 1),
    ("ReleaseWorkItem", lambda ids: pb.ReleaseWorkItemRequest(item_id=ids[0]), "cases/a", 1),
    ("StartWorkItem", lambda ids: pb.StartWorkItemRequest(item_id=ids[0], user="u"), "cases/a", 1),
    ("CompleteWorkItem", lambda ids: pb.CompleteWorkItemRequest(item_id=ids[0], user="u"), "cases/a", 1),
    ("RunCase", lambda _: pb.RunCaseRequest(spec_id="sign", case_id="b"), "cases/b", 1),
    ("FailWorkItem", lambda ids: pb.FailWorkItemRequest(item_id=ids[0], code="X", message="no"), "cases/b", 1),
    ("CancelCase", lambda _: pb.CancelCaseRequest(case_id="b"), "cases/b", 1),
    ("CancelCase", lambda _: pb.CancelCaseRequest(case_id="b"), "cases/b", 1),  # again: OK, and nothing to change
    ("PurgeCases", lambda _: pb.PurgeCasesRequest(case_ids=["b"]), "cases/b", 1),
    ("RunCase", lambda _: pb.RunCaseRequest(spec_id="many", case_id="m"), "cases/m", 1),
    ("AddInstance", lambda _: pb.AddInstanceRequest(case_id="m", task_id="each"), "cases/m", 1),
    ("CloseInstances", lambda _: pb.CloseInstancesRequest(case_id="m", task_id="each"), "cases/m", 1),
    ("SkipWorkItem", lambda ids: pb.SkipWorkItemRequest(item_id=ids[0]), "cases/m", 1),
    ("CompleteInstances", lambda _: pb.CompleteInstancesRequest(case_id="m", task_id="each"), "cases/m", 1),
    ("CancelTask", lambda _: pb.CancelTaskRequest(case_id="m", task_id="other"), "cases/m", 1),
    (
        "RunCases",
        lambda _: pb.RunCasesRequest(
            cases=[pb.RunCaseRequest(spec_id="sign", case_id=f"r{number}") for number in range(3)]
        ),
        "cases/r",
        3,  # one for each case
    ),
    (
        "CreateSchedule",
        lambda _: pb.CreateScheduleRequest(
            schedule_id="nightly", spec=pb.ScheduleSpec(spec_id="sign", every="0 3 * * *")
        ),
        "schedules/nightly",
        1,
    ),
    ("PauseSchedule", lambda _: pb.PauseScheduleRequest(schedule_id="nightly"), "schedules/nightly", 1),
    ("ResumeSchedule", lambda _: pb.ResumeScheduleRequest(schedule_id="nightly"), "schedules/nightly", 1),
    ("DeleteSchedule", lambda _: pb.DeleteScheduleRequest(schedule_id="nightly"), "schedules/nightly", 1),
    (
        "PutConnector",
        lambda _: pb.PutConnectorRequest(name="bank", kind="http", config_json=b"{}"),
        "connectors/bank",
        1,
    ),
    ("DeleteConnector", lambda _: pb.DeleteConnectorRequest(name="bank"), "connectors/bank", 1),
    ("SetLogLevel", lambda _: pb.SetLogLevelRequest(level="debug"), "log-level/debug", 1),
    (
        "ExecutePattern",
        lambda _: pb.ExecutePatternRequest(pattern_id=1),
        "patterns/1",
        1,
    ),
]


async def test_every_effect_has_exactly_one_entry_with_who_and_what(office: Office) -> None:
    """One call after the other, each with a request id, repeated once: the repetition is told of as well."""
    for number, (name, make, resource, count) in enumerate(STEPS):
        before = {entry.audit_id for entry in await office.entries()}
        listed = await office.call("ListWorkItems", pb.ListWorkItemsRequest())
        assert isinstance(listed, pb.ListWorkItemsResponse)
        open_ = [item.item_id for item in listed.items if item.case_id == resource.removeprefix("cases/")]
        request = make(open_)
        request.request_id = f"step-{number}"  # type: ignore[attr-defined]  # every mutation has one
        try:
            await office.call(name, request)
        except Refusal as refusal:
            raise AssertionError(f"{name}: {refusal.error.message}") from refusal
        new = [entry.operation for entry in await office.entries() if entry.audit_id not in before]
        mine = [one for one in new if one.method.endswith(f"/{name}")]
        assert len(mine) == count, (name, mine)
        for one in mine:
            assert (one.principal, one.outcome, one.count) == (CALLER.name, "OK", 1)
            assert one.resource.startswith(resource), name
            assert one.request_id.partition("#")[0] == f"step-{number}"
            assert one.trace_id == "cd" * 16
        others = {one.method.rpartition("/")[2] for one in new} - {name, "ListWorkItems"}
        assert not others, name


def test_mutations_that_the_steps_leave_out_are_known() -> None:
    """So that a new one is not forgotten: they go the way of others, or are not there yet."""
    writes = {method.name for method in UNARY if method.has_request_id}
    assert writes - {name for name, _, _, _ in STEPS} == {
        *{"CancelInstances", "ResolveIncident", "RetryDeadLetter", "DiscardDeadLetter", "CompleteWorkItems"},
        *{"DeleteWorkflow", "UpdateSchedule", "TriggerSchedule", "BackfillSchedule", "AdvanceTime"},
        *{"ExecutePatterns", "MigrateCases", "SetPromotion"},
        *{"OfferWorkItem", "AllocateWorkItem", "ReallocateWorkItem", "DelegateWorkItem"},
        *{"SuspendWorkItem", "ResumeWorkItem", "CreateLegalHold", "ReleaseLegalHold"},
        *{"CreateSubscription", "DeleteSubscription", "ReplayDeliveries"},
    }
