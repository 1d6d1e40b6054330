"""What rude clients get, while others are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TypeAlias, cast

import grpc
import grpc.aio
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.config import SidecarConfig
from tests.sidecar.server.client import ANY_PORT, developer


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Sidecar]:
    config = SidecarConfig(
        dev=True,
        data_dir=str(tmp_path),
        address=ANY_PORT,
        plain_address=ANY_PORT,
        http_address="",
        metrics_address="",
        handshake_timeout_ms=2_000,
        max_concurrent_streams=4,
        max_streams_per_connection=3,
    )
    async with Sidecar(config) as running:
        yield running


async def served(channel: grpc.aio.Channel) -> bool:
    status = await pb.AdminServiceStub(channel).GetStatus(
        pb.GetStatusRequest(omit_document_schema=True), timeout=60, wait_for_ready=True
    )
    return bool(status.version)


async def test_a_silent_connection_is_closed(strict: Sidecar) -> None:
    host, _, port = strict.addresses.grpc.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()
    async with developer(strict.addresses) as channel:
        assert await served(channel)


async def test_a_message_that_is_too_large_is_refused(strict: Sidecar) -> None:
    async with developer(strict.addresses) as channel:
        request = pb.ValidateWorkflowRequest(spec_json=b" " * (strict.config.max_message_bytes + 1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb.WorkflowServiceStub(channel).ValidateWorkflow(request, timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await served(channel)


TEXT_THAT_IS_NONE = b"\x0a\x02\xff\xfe"  # field 1, two bytes that are no UTF-8


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", TEXT_THAT_IS_NONE, b"\x0a\x7fcut off"])
@pytest.mark.parametrize("name", ["GetCase", "WatchCase", "StreamRunCase"])
async def test_bytes_that_are_no_request_are_told_so(strict: Sidecar, name: str, raw: bytes) -> None:
    path = f"/knhk.sidecar.v1.CaseService/{name}"
    async with developer(strict.addresses) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _sent(channel, path, raw)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"is no knhk.sidecar.v1.{name}Request" in str(caught.value.details())
        assert await served(channel)


async def _sent(channel: grpc.aio.Channel, path: str, raw: bytes) -> None:
    """Sends bytes as they are to a unary call, a watch, or a stream both ways."""
    if path.endswith("GetCase"):
        await channel.unary_unary(path)(raw)  # type: ignore[call-arg]
    elif path.endswith("WatchCase"):
        await channel.unary_stream(path)(raw).read()  # type: ignore[call-arg]
    else:
        both = channel.stream_stream(path)()  # type: ignore[call-arg]
        await both.write(raw)
        await both.read()


async def test_bytes_that_are_no_request_are_in_the_audit(strict: Sidecar) -> None:
    async with developer(strict.addresses) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/knhk.sidecar.v1.CaseService/CreateCase")(b"\xff")  # type: ignore[call-arg]
        async with asyncio.timeout(60):
            while True:
                audit = await pb.AdminServiceStub(channel).ListAudit(pb.ListAuditRequest())
                if entries := [each for each in audit.entries if each.method.endswith("CreateCase")]:
                    break
                await asyncio.sleep(0.05)
        assert [each.outcome for each in entries] == ["INVALID_ARGUMENT"]


async def test_metadata_that_is_too_large_is_refused(strict: Sidecar) -> None:
    async with developer(strict.addresses) as channel:
        metadata = (("x-large", "x" * (strict.config.max_metadata_bytes + 1)),)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=60, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await served(channel)


Watch: TypeAlias = "grpc.aio.UnaryStreamCall[pb.WatchCasesRequest, pb.WatchCasesResponse]"


async def test_streams_leave_room_for_calls(strict: Sidecar) -> None:
    async with developer(strict.addresses) as channel:
        watches = [pb.CaseServiceStub(channel).WatchCases(pb.WatchCasesRequest()) for _ in range(4)]
        reads = [asyncio.ensure_future(_until_refused(watch)) for watch in watches]
        done, still = await asyncio.wait(reads, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        error = refused.result()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata())
        assert "grpc-retry-pushback-ms" in dict(trailing)
        assert await served(channel)
        for watch in watches:
            watch.cancel()
        await asyncio.wait(still)


async def _until_refused(
    watch: grpc.aio.UnaryStreamCall[pb.WatchCasesRequest, pb.WatchCasesResponse],
) -> grpc.aio.AioRpcError:
    """The refusal of a watch that was not let in; one that was reads on for ever."""
    try:
        async for _ in watch:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the watch ended without a refusal")


async def test_a_flood_of_cancelled_calls_disturbs_nobody(strict: Sidecar) -> None:
    async with developer(strict.addresses) as rude, developer(strict.addresses) as innocent:

        async def flood() -> None:
            for _ in range(300):
                call = pb.AdminServiceStub(rude).GetStatus(pb.GetStatusRequest())
                await asyncio.sleep(0)
                call.cancel()

        flooding = asyncio.ensure_future(flood())
        for _ in range(20):
            assert await served(innocent)
        await flooding
        assert await served(rude)


@pytest.mark.parametrize(("auth", "expected"), [(True, "UNAUTHENTICATED"), (False, "OK")])
async def test_production_without_tls_answers_nobody_unless_told_to(auth: bool, expected: str) -> None:
    config = SidecarConfig(
        workflow_db_path=":memory:", auth_enabled=auth, address=ANY_PORT, http_address="", metrics_address=""
    )
    async with Sidecar(config) as running, grpc.aio.insecure_channel(running.addresses.grpc) as channel:
        code = "OK"
        try:
            status = await pb.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=60)
            assert status.principal == "spiffe://knhk.local/local"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        assert code == expected
