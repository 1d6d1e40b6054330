"""The stage that applies the policy, on the real road: opaque denials, streams that are judged again, narrowing by what
requests say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from google.protobuf.message import Message

from knhk_sidecar.api import faults, pb
from knhk_sidecar.api.rest.problems import fault_response
from knhk_sidecar.identity.grants import Beginning, Resource
from knhk_sidecar.identity.policy import Policy
from knhk_sidecar.identity.policy_document import of_value
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import Principal, of_certificate
from knhk_sidecar.identity.spiffe_id import SpiffeId
from knhk_sidecar.pipeline import Refusal
from knhk_sidecar.pipeline.permissions import PERMISSIONS
from knhk_sidecar.pipeline.resources import FIELDS, UNKNOWN, resources_of
from knhk_workflow import CallMeta
from tests.sidecar.pipeline.road import METHODS, Road, eventually

CALLER = of_certificate(SpiffeId.parse("spiffe://a.org/web"))
ITEMS = "knhk.sidecar.v1.WorkItemService"


def made(*rules: dict[str, object]) -> Policy:
    return Policy(of_value({"version": 1, "rules": list(rules)}), origin="test")


def allow(*permissions: str, name: str = "yes", **members: object) -> dict[str, object]:
    return {"id": name, "who": {"anyone": True}, "effect": "allow", "permissions": list(permissions), **members}


def deny(*permissions: str, name: str = "no", **members: object) -> dict[str, object]:
    return {**allow(*permissions, name=name, **members), "effect": "deny"}


class Gate:
    """Holds whoever comes."""

    def __init__(self) -> None:
        self.inside = 0

    async def __call__(self, request: pb.GetCaseRequest, meta: CallMeta) -> None:
        self.inside += 1
        await asyncio.Event().wait()


def road(*rules: dict[str, object], gate: Gate | None = None, caller: Principal = CALLER) -> tuple[Road, Policies]:
    policies = Policies(made(*rules))
    return (Road(gate, plain=caller, policies=policies) if gate else Road(plain=caller, policies=policies)), policies


async def refusal(attempt: asyncio.Future[Message | None]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await attempt
    return caught.value


async def start(made: Road, name: str, request: Message | AsyncIterator[Message]) -> asyncio.Future[Message | None]:
    return asyncio.ensure_future(made.pipeline.run(made.call(name), request))


# ------------------------------------------------------------------------------------------------------------- denials
@pytest.mark.parametrize("rules", [(), (allow("case.read"), deny("case.*", name="secret-rule"))])
async def test_a_denial_tells_the_caller_nothing_and_the_log_the_rule(rules: tuple[dict[str, object], ...]) -> None:
    there, _ = road(*rules)
    denied = await refusal(await start(there, "GetCase", pb.GetCaseRequest(case_id="c")))
    assert isinstance(denied.error, faults.PermissionDenied)
    assert denied.rule == denied.error.rule == ("secret-rule" if rules else "")
    told = denied.fault.message + str(denied.fault.trailing) + str(fault_response(denied.error).body)
    assert "secret-rule" not in told
    assert "case.read" not in told
    line = json.loads(there.lines.getvalue().splitlines()[-1])
    assert (line["code"], line["rule"], line["principal"]) == ("PERMISSION_DENIED", denied.rule, CALLER.name)
    assert there.cases.metas == []


async def test_what_policy_gives_reaches_the_engine() -> None:
    there, _ = road(allow("case.read", tenant="shop", work_roles=["clerk"]))
    await there.get()
    (meta,) = there.cases.metas
    assert (meta.tenant, meta.roles, meta.principal) == ("shop", ("clerk",), CALLER.name)


async def test_where_no_rule_allows_it_none_is_named() -> None:
    there, _ = road(allow("case.read"))
    call = there.call("GetWorkItem", service=ITEMS)
    denied = await refusal(asyncio.ensure_future(there.pipeline.run(call, pb.GetWorkItemRequest())))
    assert (denied.code.name, denied.rule) == ("PERMISSION_DENIED", "")


async def test_unsound_workflows_can_be_forbidden_to_who_may_register() -> None:
    there, _ = road(allow("workflow.write", name="reg", may_allow_unsound=False))
    call = there.call("RegisterWorkflow", service="knhk.sidecar.v1.WorkflowService")
    denied = await refusal(
        asyncio.ensure_future(there.pipeline.run(call, pb.RegisterWorkflowRequest(allow_unsound=True)))
    )
    assert (denied.code.name, denied.rule) == ("PERMISSION_DENIED", "reg")
    there_is_none = await refusal(asyncio.ensure_future(there.pipeline.run(call, pb.RegisterWorkflowRequest())))
    assert there_is_none.code.name == "UNIMPLEMENTED"  # let in; this road has no such service


# ---------------------------------------------------------------------------------------------------------- narrowing
async def test_a_batch_is_refused_as_a_whole_and_a_stream_at_the_message() -> None:
    there, _ = road(allow("case.write", resources={"workflows": ["order-*"]}))
    batch = pb.RunCasesRequest(cases=[pb.RunCaseRequest(spec_id="order-1"), pb.RunCaseRequest(spec_id="payroll")])
    assert (await refusal(await start(there, "RunCases", batch))).code.name == "PERMISSION_DENIED"

    async def messages() -> AsyncIterator[Message]:
        for correlation, spec in (("1", "order-1"), ("2", "order-2"), ("3", "payroll"), ("4", "order-3")):
            yield pb.StreamRunCaseRequest(correlation_id=correlation, run=pb.RunCaseRequest(spec_id=spec))

    denied = await refusal(await start(there, "StreamRunCase", messages()))
    assert denied.code.name == "PERMISSION_DENIED"
    assert [cast(pb.StreamRunCaseResponse, each).correlation_id for each in there.sent] == ["1", "2"]


def example(name: str) -> Message:
    """A request in which every field of a call that is looked at is set."""
    method = next(each for each in METHODS.values() if each.name == name)
    request = method.request()
    for told in (
        FIELDS.get(name, "").replace(" (each message)", "").replace(" (of the case that is made)", "").split(", ")
    ):
        target: Message = request
        *parts, last = told.split(".")
        for part in parts:
            held = getattr(target, part)
            target = (held[0] if len(held) else held.add()) if hasattr(held, "add") else held
        value = {"item_id": "3.1.1@c", "incident_id": "1@c", "pattern_id": 7, "case_ids": ["c"]}.get(last, last[:1])
        if isinstance(value, list):
            getattr(target, last).extend(value)
        elif last:
            setattr(target, last, value)
    return request


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_of_the_table_is_looked_at(name: str) -> None:
    told = resources_of(name, example(name))
    found = {value for resource in told for value in resource if value is not None}
    wanted = set()
    for field in FIELDS[name].partition(" (")[0].split(", "):
        last = field.rpartition(".")[2]
        wanted.add(7 if last == "pattern_id" else "s" if last.startswith("spec_id") else "c")
    assert found == wanted, (told, FIELDS[name])


def test_calls_that_are_not_in_the_table_say_nothing() -> None:
    """A new call about workflows, cases or patterns has to be put into the table, or here on purpose."""
    about = {f"{group}.{verb}" for group in ("pattern", "workflow", "case", "work", "schedule") for verb in
             ("read", "write", "execute", "operate")}  # fmt: skip
    silent = {
        path.rpartition("/")[2]
        for path, permission in PERMISSIONS.items()
        if permission.value in about and path.rpartition("/")[2] not in FIELDS
    }
    assert silent == {
        "ListPatterns", "StreamWorkItems", "RegisterWorkflow", "ValidateWorkflow", "GetSchedule", "ListSchedules",
        "UpdateSchedule", "DeleteSchedule", "PauseSchedule", "ResumeSchedule", "TriggerSchedule", "BackfillSchedule",
    }  # fmt: skip
    for name in silent:
        method = next(each for each in METHODS.values() if each.name == name)
        assert resources_of(name, method.request()) == UNKNOWN


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_request_that_says_nothing_is_about_nothing_known(name: str) -> None:
    """Only a case that is to be made without an id of its own is known to be none that a rule names."""
    method = next(each for each in METHODS.values() if each.name == name)
    fresh = Resource(case="")
    told = resources_of(name, method.request())
    assert told in (UNKNOWN, (fresh,))
    assert told == UNKNOWN or name in ("CreateCase", "RunCase", "StreamRunCase")


def test_filters_are_sets() -> None:
    request = pb.ListCasesRequest(filter=pb.CaseFilter(spec_id="s", case_id_prefix="eu-"))
    (told,) = resources_of("ListCases", request)
    assert told == Resource("s", "eu-")
    assert isinstance(told.case, Beginning)


# -------------------------------------------------------------------------------------------------- another policy
WATCH = pb.WatchCaseRequest(case_id="c")


@pytest.mark.parametrize("name", ["WatchCase", "WaitCase", "StreamRunCase"])
async def test_a_stream_ends_when_its_caller_loses_the_right(name: str) -> None:
    gate = Gate()
    there, policies = road(allow("case.*"), gate=gate)

    async def messages() -> AsyncIterator[Message]:
        yield pb.StreamRunCaseRequest(correlation_id="1", run=pb.RunCaseRequest(spec_id="s"))
        await asyncio.Event().wait()

    request = {"WatchCase": WATCH, "WaitCase": pb.WaitCaseRequest(case_id="c")}.get(name, messages())
    open_one = await start(there, name, request)
    await eventually(lambda: gate.inside == 1)
    policies.adopt(made(allow("case.*"), deny("case.*", name="gone")))
    denied = await refusal(open_one)
    assert (denied.code.name, denied.rule) == ("PERMISSION_DENIED", "gone")


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (allow("case.read"), allow("case.read", "backup"), None),
        (allow("case.read"), allow("case.read", resources={"cases": ["c"]}), None),
        (allow("case.read"), allow("case.read", resources={"cases": ["d"]}), "PERMISSION_DENIED"),
        (allow("case.read"), allow("case.write"), "PERMISSION_DENIED"),
        (allow("case.read"), allow("case.read", tenant="other"), "UNAVAILABLE"),
        (allow("case.read"), allow("case.read", work_roles=["clerk"]), "UNAVAILABLE"),
    ],
)
async def test_a_stream_goes_on_exactly_when_it_would_begin_the_same(
    before: dict[str, object], after: dict[str, object], code: str | None
) -> None:
    gate = Gate()
    there, policies = road(before, gate=gate)
    open_one = await start(there, "WatchCase", WATCH)
    await eventually(lambda: gate.inside == 1)
    policies.adopt(made(after))
    if code is not None:
        assert (await refusal(open_one)).code.name == code
        return
    for _ in range(5):
        await asyncio.sleep(0)
    assert not open_one.done()
    open_one.cancel()
    await asyncio.wait([open_one])
    assert open_one.cancelled()


async def test_another_rate_reaches_who_sends_on_an_open_stream_and_leaves_readers_alone() -> None:
    gate = Gate()
    there, policies = road(allow("case.*", limits={"requests_per_second": 5}), gate=gate)

    async def messages() -> AsyncIterator[Message]:
        yield pb.StreamRunCaseRequest(correlation_id="1", run=pb.RunCaseRequest(spec_id="s"))
        await asyncio.Event().wait()

    sending, reading = await start(there, "StreamRunCase", messages()), await start(there, "WatchCase", WATCH)
    await eventually(lambda: gate.inside == 2)
    policies.adopt(made(allow("case.*", limits={"requests_per_second": 50})))
    ended = await refusal(sending)
    assert (ended.code.name, ended.error.reason) == ("UNAVAILABLE", "POLICY_CHANGED")
    assert not reading.done()
    reading.cancel()
    await asyncio.wait([reading])


async def test_what_changes_something_keeps_the_answer_that_it_was_allowed() -> None:
    """Taking the answer away would leave the caller without knowing what it has done."""
    policies = Policies(made(allow("case.*")))

    async def change(request: pb.GetCaseRequest, meta: CallMeta) -> None:
        policies.adopt(made())
        await asyncio.sleep(0)

    there = Road(change, plain=CALLER, policies=policies)
    assert await there.get("c") == pb.GetCaseResponse(case=pb.Case(case_id="c"))
    assert (await refusal(asyncio.ensure_future(there.get("c")))).code.name == "PERMISSION_DENIED"


async def test_the_end_of_a_policy_and_of_the_daemon_at_once_leave_nothing_open() -> None:
    gate = Gate()
    there, policies = road(allow("case.*"), gate=gate)
    open_ones = [await start(there, "WatchCase", WATCH) for _ in range(3)]
    await eventually(lambda: gate.inside == 3)
    policies.adopt(made())
    there.pipeline.end_streams(working=True)
    codes = {(await refusal(each)).code.name for each in open_ones}
    assert codes <= {"PERMISSION_DENIED", "UNAVAILABLE"}
    assert there.pipeline._admit.streams == 0


async def test_thousands_of_callers_are_decided_by_look_up() -> None:
    there, policies = road(allow("case.read"))
    for _ in range(50):
        await there.get()
    assert list(policies.current.known) == [CALLER]


@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("ExecutePattern", lambda run: run),
        ("ExecutePatterns", lambda run: pb.ExecutePatternsRequest(executions=[run])),
        ("StreamExecutePattern", lambda run: pb.StreamExecutePatternRequest(execution=run)),
    ],
)
async def test_a_patterns_run_that_is_kept_is_a_case_to_the_rules_too(
    name: str, request_of: Callable[[pb.ExecutePatternRequest], Message]
) -> None:
    rules = (
        allow("pattern.execute", name="runs"),
        allow("case.write", name="own", resources={"cases": ["mine-*"]}),
    )
    seen: list[str] = []

    class Patterns:
        async def execute_pattern(self, request: pb.ExecutePatternRequest, meta: CallMeta) -> Message:
            seen.append(request.case_id)
            return pb.ExecutePatternResponse()

        async def execute_patterns(self, request: pb.ExecutePatternsRequest, meta: CallMeta) -> Message:
            seen.extend(each.case_id for each in request.executions)
            return pb.ExecutePatternsResponse()

        async def stream_execute_pattern(
            self, requests: AsyncIterator[pb.StreamExecutePatternRequest], meta: CallMeta
        ) -> AsyncIterator[pb.StreamExecutePatternResponse]:
            async for each in requests:
                seen.append(each.execution.case_id)
                yield pb.StreamExecutePatternResponse()

    service = "knhk.sidecar.v1.PatternService"
    there = Road(plain=CALLER, policies=Policies(made(*rules)), services={service: Patterns()})

    async def run(case_id: str, *, durable: bool) -> None:
        request = request_of(pb.ExecutePatternRequest(pattern_id=1, case_id=case_id, durable=durable))
        given = messages(request) if name.startswith("Stream") else request
        await there.pipeline.run(there.call(name, service=service), given)

    await run("mine-1", durable=True)
    await run("theirs-1", durable=False)  # leaves nothing behind
    denied = await refusal(asyncio.ensure_future(run("theirs-2", durable=True)))
    assert denied.code.name == "PERMISSION_DENIED"
    assert seen == ["mine-1", "theirs-1"]


async def messages(*several: Message) -> AsyncIterator[Message]:
    for each in several:
        yield each
