"""The Prometheus listener: GET /metrics in the daemon's loop, one request per connection, nothing else."""

from __future__ import annotations

import asyncio
from typing import Final

from knhk_sidecar.config import join_address, split_address
from knhk_sidecar.telemetry.counters import Counters

HEAD_BYTES_MAX: Final = 8_192  # a scraper sends some hundred
HEAD_SECONDS: Final = 5.0


class Exposition:
    """Serves the counters' text. `start` gives the real address and raises OSError when it cannot be had."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._server: asyncio.Server | None = None

    async def start(self, address: str) -> str:
        """Listens."""
        host, port = split_address(address)
        self._server = await asyncio.start_server(self._answer, host, port, limit=HEAD_BYTES_MAX)
        bound: int = self._server.sockets[0].getsockname()[1]
        return join_address(host, bound)

    async def stop(self) -> None:
        """Closes the listener."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1:2]
            found = head.startswith(b"GET ") and path in ([b"/metrics"], [b"/"])
            body = self._counters.prometheus().encode() if found else b"/metrics is the only page here\n"
            status = b"200 OK" if found else b"404 Not Found"
            writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n")
            writer.write(b"connection: close\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body)
            async with asyncio.timeout(HEAD_SECONDS):
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return  # the peer is slow, gone, or no scraper: there is nobody to tell
        finally:
            writer.close()
