"""What callers are in workflows: given by policy, counted when work is taken and brought back, and no permission."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import grpc.aio
import pytest

from knhk_sidecar.api import pb
from tests.sidecar.policy.daemon import Guarded
from tests.sidecar.services.server import refusal_of

CALL_SECONDS = 60
SIGNING = json.dumps(
    {
        "id": "signing",
        "tasks": {
            "both": {"split": "and"},
            "file": {"required_roles": ["clerk"]},
            "sign": {"required_roles": ["manager"]},
            "done": {"join": "and"},
        },
        "flows": [
            {"from": "start", "to": "both"},
            {"from": "both", "to": "file"},
            {"from": "both", "to": "sign"},
            {"from": "file", "to": "done"},
            {"from": "sign", "to": "done"},
            {"from": "done", "to": "end"},
        ],
    }
).encode()
CLERK = "spiffe://shop.example/people/ann"


@pytest.fixture
async def items(daemon: Guarded) -> Mapping[str, str]:
    """Work for a clerk and for a manager, by task."""
    async with daemon.as_role("application", "red") as channel:
        request = pb.RegisterWorkflowRequest(spec_json=SIGNING)
        await pb.WorkflowServiceStub(channel).RegisterWorkflow(request, timeout=CALL_SECONDS)
        ran = await pb.CaseServiceStub(channel).RunCase(pb.RunCaseRequest(spec_id="signing"), timeout=CALL_SECONDS)
        return {each.task_id: each.item_id for each in ran.open_work_items}


@pytest.fixture
async def clerk(daemon: Guarded) -> AsyncIterator[pb.WorkItemServiceAsyncStub]:
    async with daemon.channel("/people/ann") as channel:
        yield pb.WorkItemServiceStub(channel)


async def test_a_clerk_does_the_work_of_clerks(
    clerk: pb.WorkItemServiceAsyncStub, items: Mapping[str, str], daemon: Guarded
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await clerk.ClaimWorkItem(pb.ClaimWorkItemRequest(item_id=items["sign"]), timeout=CALL_SECONDS)
    refusal = refusal_of(caught.value)
    assert (refusal.code.name, refusal.info.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
    claimed = await clerk.ClaimWorkItem(pb.ClaimWorkItemRequest(item_id=items["file"]), timeout=CALL_SECONDS)
    assert claimed.item.owner == CLERK
    other = pb.CompleteWorkItemRequest(item_id=items["file"], user="bob")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await clerk.CompleteWorkItem(other, timeout=CALL_SECONDS)
    assert caught.value.code().name == "PERMISSION_DENIED"
    await clerk.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=items["file"]), timeout=CALL_SECONDS)
    async with daemon.as_role("application", "red") as channel:  # an application acts for whom it names
        signing = pb.CompleteWorkItemRequest(item_id=items["sign"], user="bob")
        await pb.WorkItemServiceStub(channel).CompleteWorkItem(signing, timeout=CALL_SECONDS)


async def test_a_stream_brings_no_work_of_other_roles(
    clerk: pb.WorkItemServiceAsyncStub, items: Mapping[str, str]
) -> None:
    async def subscribed(*roles: str) -> AsyncIterator[pb.StreamWorkItemsRequest]:
        wanted = pb.WorkSubscription(worker_id="w", tasks=["signing/file", "signing/sign"], credit=50, roles=roles)
        yield pb.StreamWorkItemsRequest(subscribe=wanted)
        await asyncio.Event().wait()

    given: list[str] = []
    stream = clerk.StreamWorkItems(subscribed())
    async with asyncio.timeout(CALL_SECONDS):
        async for response in stream:
            given += [each.item.task_id for each in response.items]
            if items["file"] in [each.item.item_id for each in response.items]:
                break
    stream.cancel()
    assert set(given) == {"file"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in clerk.StreamWorkItems(subscribed("clerk", "manager")):
            pass
    assert refusal_of(caught.value).info.reason == "ROLE_REQUIRED"


async def test_work_roles_are_told_and_allow_no_call(daemon: Guarded) -> None:
    async with daemon.channel("/people/ann") as channel:
        status = await pb.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=CALL_SECONDS)
        assert list(status.roles) == ["clerk"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb.CaseServiceStub(channel).ListCases(pb.ListCasesRequest(), timeout=CALL_SECONDS)
        assert caught.value.code().name == "PERMISSION_DENIED"
