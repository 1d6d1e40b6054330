"""Attacks over real sockets, while a well-behaved client goes on working.

The attackers speak HTTP/2 by hand, because no decent library can be made to misbehave like this. How much of each they
send follows from `--budget`: little in CI, the full number (2,000 silent connections) with the default.
"""

from __future__ import annotations

import asyncio
import gzip
import resource
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity.dev_ca import open_authority
from tests.conftest import Budget
from tests.sidecar.limits.conftest import BURST, RATE, until
from tests.sidecar.server.client import ANY_PORT, developer, secure

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CALL_SECONDS = 60.0  # an undisturbed call takes milliseconds; the machine is shared
SILENT_MOST = 2_000
FULL_STEPS = 20_000  # of the budget: then everything is sent


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field without compression (RFC 7541, 6.2.2); names and values below 127 bytes."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


HEAD = b"".join(
    literal(name, value)
    for name, value in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/knhk.sidecar.v1.AdminService/GetStatus"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),  # codespell:ignore te
        ("grpc-encoding", "gzip"),
    )
)


def share(budget: Budget, most: int) -> int:
    """So much of `most` as the budget allows, at least a twentieth."""
    return max(most // 20, min(most, most * budget.steps // FULL_STEPS))


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Sidecar]:
    config = SidecarConfig(
        dev=True,
        data_dir=str(tmp_path),
        address=ANY_PORT,
        plain_address=ANY_PORT,
        http_address=ANY_PORT,
        metrics_address="",
        handshake_timeout_ms=2_000,
        drain_seconds=2,
    )
    async with Sidecar(config) as running:
        yield running


@asynccontextmanager
async def innocent(sidecar: Sidecar, pause: float = 0.002) -> AsyncIterator[list[float]]:
    """A client that calls one by one as long as the block lasts; none of its calls may fail."""
    clock = asyncio.get_running_loop().time
    took: list[float] = []
    async with developer(sidecar.addresses) as channel:
        stub = pb.PatternServiceStub(channel)

        async def call() -> None:
            while True:
                began = clock()
                answer = await stub.GetPattern(pb.GetPatternRequest(pattern_id=1), timeout=CALL_SECONDS)
                assert answer.pattern.pattern_id == 1
                took.append(clock() - began)
                await asyncio.sleep(pause)

        calling = asyncio.ensure_future(call())
        await until(lambda: bool(took) or calling.done())
        try:
            yield took
        finally:
            calling.cancel()
            with suppress(asyncio.CancelledError):
                await calling  # raises what a call has failed with
        assert took


def another(sidecar: Sidecar) -> grpc.aio.Channel:
    """A channel of another caller than the developer."""
    made = open_authority(sidecar.config.dev_directory).issue("rude", "/rude")
    read = (Path(path).read_bytes() for path in (sidecar.addresses.ca, made.cert, made.key))
    return secure(sidecar.addresses.grpc, *read)


async def test_who_ignores_every_push_back_takes_nothing_from_others(narrow: Sidecar, budget: Budget) -> None:
    loop = asyncio.get_running_loop()
    done = {"OK": 0, "RESOURCE_EXHAUSTED": 0}
    async with another(narrow) as channel, innocent(narrow, pause=2 / RATE) as calls:
        stub = pb.PatternServiceStub(channel)
        began, before = loop.time(), len(calls)
        asked = iter(range(share(budget, 20_000)))

        async def hammer() -> None:
            for _ in asked:
                try:
                    await stub.GetPattern(pb.GetPatternRequest(pattern_id=1), timeout=CALL_SECONDS)
                    done["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    done[error.code().name] += 1

        await asyncio.gather(*(hammer() for _ in range(20)))
        assert done["RESOURCE_EXHAUSTED"] > done["OK"]
        assert done["OK"] <= BURST + RATE * (loop.time() - began) + 1
        await until(lambda: len(calls) > before + 5)  # `innocent` sees to it that none of its calls is refused


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has said hello in HTTP/2."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    await writer.drain()
    return reader, writer


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """Kind and payload of what the server sends, until it closes."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(9)
            yield head[3], await reader.readexactly(int.from_bytes(head[:3], "big"))


async def until_away(reader: asyncio.StreamReader) -> int:
    """The error code of the server's GOAWAY; -1 when it closed without one."""
    async for kind, payload in frames(reader):
        if kind == GOAWAY:
            return int.from_bytes(payload[4:8], "big")
    return -1


async def test_rapid_reset_disturbs_nobody(target: Sidecar, budget: Budget) -> None:
    async with innocent(target) as calls:
        before = len(calls)
        reader, writer = await connected(target.addresses.grpc_plain)
        with suppress(ConnectionError):
            for number in range(share(budget, 20_000)):
                stream = 2 * number + 1
                writer.write(frame(HEADERS, END_HEADERS, stream, HEAD))
                writer.write(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
                if number % 100 == 0:
                    await writer.drain()
        writer.close()
        await until(lambda: len(calls) >= before + 10)
        del reader


async def test_a_ping_flood_is_sent_away_and_disturbs_nobody(target: Sidecar, budget: Budget) -> None:
    async with innocent(target) as calls:
        before = len(calls)
        reader, writer = await connected(target.addresses.grpc_plain)
        with suppress(ConnectionError):
            for number in range(share(budget, 20_000)):
                writer.write(frame(PING, 0, 0, struct.pack(">Q", number)))
                if number % 100 == 0:
                    await writer.drain()
        async with asyncio.timeout(CALL_SECONDS):
            assert await until_away(reader) in (11, -1), "ENHANCE_YOUR_CALM, or the connection is simply closed"
        writer.close()
        await until(lambda: len(calls) >= before + 10)


@pytest.mark.long
async def test_silent_connections_are_closed_and_disturb_nobody(target: Sidecar, budget: Budget) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * SILENT_MOST
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    try:
        room = min(wanted, hard) // 3  # both ends of each are in this process
        count = min(share(budget, SILENT_MOST), room)
        async with innocent(target) as calls:
            host, _, port = target.addresses.grpc.rpartition(":")
            before = len(calls)
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(count)]
            await until(lambda: len(calls) > before)
            async with asyncio.timeout(2 * CALL_SECONDS):
                ends = await asyncio.gather(*(reader.read() for reader, _ in silent), return_exceptions=True)
            assert len(ends) == count
            for _, writer in silent:
                writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_silent_http_connections_are_bounded(target: Sidecar) -> None:
    host, _, port = target.addresses.http.rpartition(":")
    async with innocent(target):
        held = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
        for _, writer in held:
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(CALL_SECONDS):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        for _, each in (*held, (reader, writer)):
            each.close()


@pytest.mark.long
async def test_a_gzip_bomb_is_refused_and_disturbs_nobody(target: Sidecar, budget: Budget) -> None:
    size = share(budget, 500_000_000)
    packed = gzip.compress(bytes(1_000_000), 9)
    bomb = packed * (size // 1_000_000 + 5)  # gzip streams may be joined
    message = b"\1" + struct.pack(">I", len(bomb)) + bomb
    async with innocent(target) as calls:
        before = len(calls)
        reader, writer = await connected(target.addresses.grpc_plain)
        writer.write(frame(HEADERS, END_HEADERS, 1, HEAD))
        with suppress(ConnectionError):
            for start in range(0, min(len(message), 60_000), 16_000):  # what the server's window takes at once
                writer.write(frame(DATA, 0, 1, message[start : min(start + 16_000, 60_000)]))
                await writer.drain()
        await until(lambda: len(calls) >= before + 10)
        writer.close()
        del reader
    async with developer(target.addresses) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb.WorkflowServiceStub(channel).ValidateWorkflow(
                pb.ValidateWorkflowRequest(spec_json=bytes(size)), timeout=60, compression=grpc.Compression.Gzip
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await pb.PatternServiceStub(channel).GetPattern(pb.GetPatternRequest(pattern_id=1), timeout=CALL_SECONDS)
