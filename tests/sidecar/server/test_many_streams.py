"""The limit of streams per connection: who keeps to it is served, and who resets rapidly harms nobody else."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.config import SidecarConfig
from tests.sidecar.server.client import ANY_PORT, developer

STREAMS = 100
CALLS = 2_000
RESETS = 2_000  # by each attacker, at least
SERVED = 50  # calls of the other client meanwhile, at least
ASKING = pb.GetStatusRequest(omit_document_schema=True)


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Sidecar]:
    config = SidecarConfig(
        dev=True,
        data_dir=str(tmp_path),
        address=ANY_PORT,
        plain_address=ANY_PORT,
        http_address="",
        metrics_address="",
        max_concurrent_streams=STREAMS,
    )
    async with Sidecar(config) as running:
        yield running


async def test_a_client_that_fills_the_limit_is_never_refused(narrow: Sidecar) -> None:
    async with developer(narrow.addresses) as channel:
        stub = pb.AdminServiceStub(channel)
        left = iter(range(CALLS))

        async def ask() -> None:
            for _ in left:
                await stub.GetStatus(ASKING, timeout=60)

        async with asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(ask())


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing and without Huffman coding (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


HEADERS = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/knhk.sidecar.v1.AdminService/GetStatus"),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),  # codespell:ignore te
        (b"content-type", b"application/grpc"),
    )
)
CANCEL = struct.pack(">I", 8)


async def reset_rapidly(address: str, enough: asyncio.Event) -> None:
    """Opens calls and cancels each at once: RESETS of them, and on until it is enough."""
    host, _, port = address.rpartition(":")
    opened = 0
    while opened < RESETS or not enough.is_set():
        with suppress(ConnectionError):  # whoever is cut off comes again
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
            ignoring = asyncio.create_task(reader.read(-1))
            stream = 1
            try:
                while opened < RESETS or not enough.is_set():
                    for _ in range(50):
                        call = frame(1, 4, stream, HEADERS) + frame(0, 1, stream, b"\0" * 5)
                        writer.write(call + frame(3, 0, stream, CANCEL))
                        stream += 2
                        opened += 1
                    await writer.drain()
                    await asyncio.sleep(0)
            finally:
                ignoring.cancel()
                writer.close()


@pytest.mark.long
async def test_rapid_reset_by_one_client_fails_no_call_of_another(narrow: Sidecar) -> None:
    enough = asyncio.Event()
    async with developer(narrow.addresses) as channel:
        stub = pb.AdminServiceStub(channel)
        await stub.GetStatus(ASKING, timeout=60)
        attacks = [asyncio.create_task(reset_rapidly(narrow.addresses.grpc_plain, enough)) for _ in range(2)]
        for _ in range(SERVED):
            await stub.GetStatus(ASKING, timeout=60)
        enough.set()
        await asyncio.wait_for(asyncio.gather(*attacks), 60)
