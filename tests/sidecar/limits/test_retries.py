"""Our client against a daemon that says no: it waits as long as it is asked to, and not for ever."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import grpc
import httpx2
import pytest
from google.protobuf.message import Message

from knhk_sidecar.api import faults, pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.client import Client, Endpoint
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.retries import ATTEMPTS, BROKEN_ATTEMPTS, Budget, Metadata, Policy, Retries, push_back
from knhk_sidecar.worker import Job, Worker
from knhk_workflow import Busy, LimitExceeded, StoreUnavailable
from tests.sidecar.limits.conftest import BURST, endpoint_of, until
from tests.sidecar.server.client import ANY_PORT, developer

READ = pb.GetCaseRequest(case_id="c")
PLAIN_WRITE = pb.RunCaseRequest(spec_id="s")
KEYED_WRITE = pb.RunCaseRequest(spec_id="s", request_id="r-1")
HEAVY = pb.RunCasesRequest(cases=[pb.RunCaseRequest(spec_id="nothing")] * 400)
"""It spends the tokens of a second, whatever comes of it: the call after it is refused, unless it takes longer."""
EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


def trailing(error: Exception) -> tuple[tuple[str, str | bytes], ...]:
    return faults.to_rpc(error).trailing


@pytest.mark.parametrize("request_", [READ, PLAIN_WRITE, KEYED_WRITE])
def test_a_push_back_is_waited_for_with_some_more(request_: Message) -> None:
    waits = [Policy().pause(request_, 1, EXHAUSTED, trailing(Busy("the queue", 200)), None) for _ in range(200)]
    assert all(wait is not None and 0.2 <= wait <= 0.3 for wait in waits)
    assert len(set(waits)) > 100, "those refused together do not come back together"


def test_retry_info_counts_without_the_header() -> None:
    (details,) = (each for each in trailing(StoreUnavailable("away")) if each[0] == "grpc-status-details-bin")
    assert push_back([details]) == 1.0
    assert push_back([("grpc-retry-pushback-ms", "-1"), details]) is None, "the daemon wants nothing more"
    assert push_back([("grpc-retry-pushback-ms", "soon")]) is None
    assert push_back([]) is None


def test_a_broken_connection_is_tried_again_only_where_nothing_can_happen_twice() -> None:
    policy = Policy()
    assert policy.pause(READ, 1, UNAVAILABLE, (), None) is not None
    assert policy.pause(KEYED_WRITE, 1, UNAVAILABLE, (), None) is not None
    assert policy.pause(PLAIN_WRITE, 1, UNAVAILABLE, (), None) is None
    assert policy.pause(READ, BROKEN_ATTEMPTS, UNAVAILABLE, (), None) is None


def test_what_is_never_tried_again() -> None:
    policy, busy = Policy(), trailing(Busy("the queue", 200))
    assert policy.pause(READ, 1, EXHAUSTED, trailing(LimitExceeded("bytes", 1, 2)), None) is None
    assert policy.pause(READ, 1, grpc.StatusCode.INTERNAL, busy, None) is None
    assert policy.pause(READ, ATTEMPTS, EXHAUSTED, busy, None) is None
    assert policy.pause(READ, 1, EXHAUSTED, busy, 0.15) is None, "the deadline would pass first"
    assert Policy(attempts=1).pause(READ, 1, EXHAUSTED, busy, None) is None


def test_the_budget_bounds_what_retries_add() -> None:
    policy = Policy(budget=Budget(3))
    spent = sum(policy.pause(READ, 1, UNAVAILABLE, (), None) is not None for _ in range(100))
    assert spent == 3
    for _ in range(11):
        policy.budget.earn()
    assert policy.pause(READ, 1, UNAVAILABLE, (), None) is not None
    assert policy.pause(READ, 1, UNAVAILABLE, (), None) is None


async def test_calls_beyond_the_rate_come_through_later(narrow: Sidecar) -> None:
    """Every call gets its answer, however often that takes: until the daemon has refused some."""

    def call() -> None:
        with Client(endpoint_of(narrow.addresses)) as client:
            while not narrow.counters.refusals().get("RATE_LIMITED"):
                client.cases.RunCases(HEAVY, timeout=60)
                assert client.admin.GetStatus(pb.GetStatusRequest(omit_document_schema=True), timeout=60).version

    await asyncio.wait_for(asyncio.to_thread(call), 60)


async def test_who_does_not_wait_is_told_so_over_grpc_and_rest_alike(narrow: Sidecar) -> None:
    async with developer(narrow.addresses) as channel, httpx2.AsyncClient() as http:
        stub = pb.CaseServiceStub(channel)

        async def until_refused() -> None:
            while True:
                await stub.RunCases(HEAVY)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(until_refused(), 60)
        assert caught.value.code() is EXHAUSTED
        assert (push_back(cast(Metadata, caught.value.trailing_metadata())) or 0) > 0
        url = f"http://{narrow.addresses.http}"
        heavy = {"cases": [{"spec_id": "nothing"}] * len(HEAVY.cases)}
        async with asyncio.timeout(60):
            while (refused := await http.post(f"{url}/api/v1/cases:runBatch", json=heavy)).status_code != 429:
                assert refused.status_code == 200
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["reason"] == "RATE_LIMITED"
        health = [(await http.get(f"{url}/health/ready")).status_code for _ in range(2 * BURST)]
        assert health == [200] * len(health)


async def test_one_bucket_for_both_transports(tmp_path: Path) -> None:
    config = SidecarConfig(
        workflow_db_path=":memory:",
        auth_enabled=False,
        address=ANY_PORT,
        http_address=ANY_PORT,
        metrics_address="",
        rate_limit_per_second=0.001,
        rate_limit_burst=4,
    )
    async with (
        Sidecar(config) as running,
        grpc.aio.insecure_channel(running.addresses.grpc) as channel,
        httpx2.AsyncClient(base_url=f"http://{running.addresses.http}") as http,
    ):
        stub = pb.PatternServiceStub(channel)
        for _ in range(2):
            await stub.GetPattern(pb.GetPatternRequest(pattern_id=1))
            assert (await http.get("/api/v1/patterns/1")).status_code == 200
        assert (await http.get("/api/v1/patterns/1")).status_code == 429
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetPattern(pb.GetPatternRequest(pattern_id=1))
        assert caught.value.code() is EXHAUSTED


async def test_a_worker_does_all_its_work_in_spite_of_the_limit(narrow: Sidecar) -> None:
    document = (
        b'{"id":"w","tasks":{"a":{"required_roles":["clerk"]}},'
        b'"flows":[{"from":"start","to":"a"},{"from":"a","to":"end"}]}'
    )
    cases = [pb.RunCaseRequest(spec_id="w", case_id=f"c{number}") for number in range(3 * BURST)]

    def prepare() -> None:
        with Client(endpoint_of(narrow.addresses)) as client:
            client.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=document), timeout=60)
            client.cases.RunCases(pb.RunCasesRequest(cases=cases), timeout=60)

    await asyncio.to_thread(prepare)
    done = asyncio.Event()
    handled = 0

    async def work() -> None:
        nonlocal handled
        handled += 1
        if handled == len(cases):
            done.set()

    async with Worker(endpoint_of(narrow.addresses), {"w/a": work}, credit=3) as worker:
        async with asyncio.timeout(60):
            await done.wait()
            await until(lambda: worker.completed == len(cases))
    assert worker.completed == len(cases)


async def test_a_worker_learns_how_large_its_messages_may_be(narrow: Sidecar) -> None:
    document = (
        b'{"id":"w","tasks":{"a":{"required_roles":["clerk"]}},'
        b'"flows":[{"from":"start","to":"a"},{"from":"a","to":"end"}]}'
    )
    cases = [pb.RunCaseRequest(spec_id="w", case_id=f"c{number}") for number in range(20)]

    def prepare() -> None:
        with Client(endpoint_of(narrow.addresses)) as client:
            client.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=document), timeout=10)
            client.cases.RunCases(pb.RunCasesRequest(cases=cases), timeout=10)

    def failure() -> str:
        with Client(endpoint_of(narrow.addresses)) as client:
            request = pb.GetCaseHistoryRequest(case_id="c0", event_types=["item_failed"])
            return client.cases.GetCaseHistory(request, timeout=10).events[0].data_json.decode()

    await asyncio.to_thread(prepare)
    together = asyncio.Event()
    begun = 0

    async def work(job: Job) -> dict[str, str]:
        nonlocal begun
        begun += 1
        if begun == len(cases):
            together.set()
        await together.wait()
        return {"large": "x" * (100_000 if job.case_id == "c0" else 6_000)}  # 64 KB fit into a message

    async with Worker(endpoint_of(narrow.addresses), {"w/a": work}) as worker:
        async with asyncio.timeout(20):
            await until(lambda: worker.completed + worker.failed == len(cases))
    assert (worker.completed, worker.failed) == (19, 1)
    assert "output_too_large" in await asyncio.to_thread(failure)


def test_nobody_there_is_told_within_the_deadline() -> None:
    with Client(Endpoint("127.0.0.1:1")) as client, pytest.raises(grpc.RpcError) as caught:
        client.cases.GetCase(READ, timeout=5)
    assert caught.value.code() in (UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@contextmanager
def refusing(seconds: float = 0.0) -> Iterator[tuple[str, list[str]]]:
    """A server that has no room for anybody, and takes some time to say so; its address, and every call that came."""
    came: list[str] = []

    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        time.sleep(seconds)
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "1"),))
        context.abort(EXHAUSTED, "full")

    class Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            came.append(details.method)
            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Methods()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", came
    finally:
        server.stop(None).wait()


def test_whoever_asks_again_and_again_makes_no_more_attempts() -> None:
    with refusing(0.02) as (address, came), Client(Endpoint(address)) as client:
        call = client.admin.GetStatus.future(pb.GetStatusRequest())
        while True:
            try:
                call.result(timeout=0.005)
            except grpc.FutureTimeoutError:
                continue
            except grpc.RpcError:
                break
    assert len(came) == ATTEMPTS


def test_a_call_that_was_given_up_is_not_made_again() -> None:
    calls: list[grpc.CallFuture[pb.GetStatusResponse]] = []

    def give_up() -> None:
        calls[0].cancel()  # type: ignore[no-untyped-call]  # gRPC's stubs

    with refusing() as (address, came), grpc.insecure_channel(address) as plain:
        channel = grpc.intercept_channel(plain, Retries(sleep=lambda _: give_up()))
        calls.append(pb.AdminServiceStub(channel).GetStatus.future(pb.GetStatusRequest()))
        with pytest.raises(grpc.RpcError):
            calls[0].result()
    assert len(came) == 1


def test_what_is_for_this_host_goes_over_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        proxy.setblocking(False)
        endpoint = Endpoint("127.0.0.1:1", token=lambda: "secret")
        with Client(endpoint, Policy(attempts=1)) as client, pytest.raises(grpc.RpcError):
            client.admin.GetStatus(pb.GetStatusRequest(), timeout=5)
        with pytest.raises(BlockingIOError):
            proxy.accept()
