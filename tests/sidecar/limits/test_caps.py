"""How large and how many: each bound over gRPC and REST, refused with what was expected."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import grpc
import httpx2
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from tests.sidecar.server.client import developer


@pytest.fixture
async def http(narrow: Sidecar) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=f"http://{narrow.addresses.http}") as client:
        yield client


async def test_rest_headers_of_more_than_8_kb_are_refused(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/api/v1/patterns/1", headers={"x-large": "x" * 8_200})
    assert answer.status_code == 431
    assert answer.json()["reason"] == "LIMIT_EXCEEDED"
    assert "8192 bytes" in answer.json()["detail"]
    assert (await http.get(f"/api/v1/patterns/1?x={'y' * 8_200}")).status_code == 431
    assert (await http.get("/api/v1/patterns/1", headers={"x-large": "x" * 7_000})).status_code == 200


async def test_rest_heads_without_end_are_cut(narrow: Sidecar) -> None:
    host, _, port = narrow.addresses.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /api/v1/patterns/1 HTTP/1.1\r\nhost: localhost\r\n")
    answer = b""
    try:
        async with asyncio.timeout(60):
            for number in range(2_000):
                writer.write(b"x-%d: %s\r\n" % (number, b"y" * 100))
                await writer.drain()
            answer = await reader.read()
    except ConnectionError:
        answer = answer or b"HTTP/1.1 400 cut"
    assert answer.startswith(b"HTTP/1.1 4")
    writer.close()


async def test_rest_bodies_are_bounded_whether_declared_or_not(http: httpx2.AsyncClient) -> None:
    large = b'{"spec": "' + b"x" * 65_600 + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        yield large  # in one piece: who is still sending when it is refused may never read why

    for content in (large, pieces()):
        answer = await http.post("/api/v1/workflows:validate", content=content)
        assert answer.status_code == 413
        assert answer.json()["reason"] == "LIMIT_EXCEEDED"
        assert "65536 bytes" in answer.json()["detail"]


async def test_a_compressed_rest_body_is_not_unpacked(http: httpx2.AsyncClient) -> None:
    bomb = gzip.compress(b" " * 20_000_000)
    assert len(bomb) < 60_000
    answer = await http.post("/api/v1/workflows:validate", content=bomb, headers={"content-encoding": "gzip"})
    assert answer.status_code in (400, 415)


async def test_a_compressed_grpc_message_is_bounded_by_what_it_unpacks_to(narrow: Sidecar) -> None:
    async with developer(narrow.addresses) as channel:
        request = pb.ValidateWorkflowRequest(spec_json=b" " * 20_000_000)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb.WorkflowServiceStub(channel).ValidateWorkflow(
                request, timeout=60, compression=grpc.Compression.Gzip
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await pb.PatternServiceStub(channel).GetPattern(pb.GetPatternRequest(pattern_id=1), timeout=60)


async def test_messages_of_one_stream_are_bounded(narrow: Sidecar) -> None:
    async def requests() -> AsyncIterator[pb.StreamExecutePatternRequest]:
        for number in range(30):
            execution = pb.ExecutePatternRequest(pattern_id=1)
            yield pb.StreamExecutePatternRequest(correlation_id=str(number), execution=execution)

    async with developer(narrow.addresses) as channel:
        answered: set[str] = set()
        answers = pb.PatternServiceStub(channel).StreamExecutePattern(requests(), timeout=60)

        async def read() -> None:
            async for answer in answers:
                answered.add(answer.correlation_id)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "messages on one stream" in str(caught.value.details())
        assert len(answered) == 20, "what came before the bound was done"


SPOILT = [
    b'{"spec_id": "a", "spec_id": "b"}',
    b'{"spec_id": "a", "data": {"x": NaN}}',
    b'{"spec_id": "a", "data": {"x": 1e999}}',
    b'{"spec_id": "a", "data": ' + b'{"x":' * 8_000 + b"1" + b"}" * 8_000 + b"}",
    b'{"spec_id": "a", "data": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    b'{"spec_id": "a"} trailing',
    b'{"spec_id": "\xff"}',
    b'{"spec_id": "\\ud800"}',
    b'{"spec_id": "a", "data": {"x": 99999999999999999999}}',
    b"{'spec_id': 'a'}",
]


async def test_json_is_read_strictly(http: httpx2.AsyncClient) -> None:
    for body in SPOILT:
        answer = await http.post("/api/v1/cases", content=body, headers={"content-type": "application/json"})
        while answer.status_code == 429:
            await asyncio.sleep(0.1)
            answer = await http.post("/api/v1/cases", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 413), body[:60]
        assert answer.json()["reason"] in ("INVALID_ARGUMENT", "LIMIT_EXCEEDED")


async def test_the_limits_that_are_told_are_those_in_force(narrow: Sidecar) -> None:
    async with developer(narrow.addresses) as channel:
        status = await pb.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest(omit_document_schema=True))
    assert (status.limits.request_bytes, status.limits.streams_per_connection) == (64 * 1024, 15)
