"""The outside of the tests: an HTTP server in a process of its own, which can misbehave.

    python -m tests.connectors.outside PORT_FILE [--seed N] [--trouble P] [--delay S] [--ledger FILE]

`POST /effects` with an Idempotency-Key does an effect once for each key and answers {"number": n, "seen": requests
with this key, ...what was sent}. With `--trouble P` a share P of the requests fails in one of the ways of TROUBLE,
half of them after the effect was done. Every effect that is done is one line of the ledger, written before the answer,
so that nothing is forgotten when somebody kills this process. An answer that is late is so by `--delay` seconds,
or by those of `?late=S`.

    /echo           what was sent: method, path, query, headers, body
    /status/N       answers N; `?after=S` with Retry-After
    /slow/S         answers after S seconds
    /hold/NAME      answers once /release/NAME was asked for; /held/NAME says how many have come
    /redirect?to=U  answers 302
    /text           answers a plain text
    /large/N        answers N bytes
    /reset          resets the connection
    /repeats        404 with the header X-Key as X-Seen
    /missed/KEY     200 and the effect of a key, or 404
    /effects        GET: how many were done, how many requests came
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import struct
from collections import Counter, defaultdict
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

TROUBLE = ("500", "503", "429", "delay", "reset", "drop", "half")
"""Answers, a late answer, a reset or a closed connection without an answer, half an answer."""
DELAY_S = 0.4  # of a late answer, unless told otherwise


class Outside:
    """The server's state."""

    def __init__(self, seed: int, trouble: float, delay: float, ledger: Path | None) -> None:
        """`delay`: seconds of a late answer."""
        self.random = random.Random(seed)
        self.trouble = trouble
        self.delay = delay
        self.effects: dict[str, int] = {}
        self.seen: Counter[str] = Counter()
        self.requests = 0
        self.ledger = ledger.open("a", encoding="utf-8") if ledger is not None else None
        self.most = 0
        self.now = 0
        self.held: Counter[str] = Counter()
        self.released: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def act(self, key: str, body: object) -> dict[str, object]:
        """The effect of a key, done now or before."""
        self.seen[key] += 1
        if key not in self.effects:
            self.effects[key] = len(self.effects) + 1
            if self.ledger is not None:
                self.ledger.write(json.dumps({"key": key, "body": body}) + "\n")
                self.ledger.flush()
        told = body if isinstance(body, dict) else {"sent": body}
        return {**told, "number": self.effects[key], "seen": self.seen[key]}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._answer(method, target, headers, content, writer)
        finally:
            self.now -= 1

    async def _answer(
        self, method: str, target: str, headers: dict[str, str], content: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        split = urlsplit(target)
        parts = split.path.strip("/").split("/")
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        trouble = ""
        if parts[0] == "effects" and method == "POST":
            trouble = self.random.choice(TROUBLE) if self.random.random() < self.trouble else ""
            after = bool(trouble) and self.random.random() < 0.5
            answer: object = None
            if not trouble or after or trouble in ("delay", "half"):
                answer = self.act(headers.get("idempotency-key", ""), json.loads(content or b"null"))
            if trouble == "delay":
                await asyncio.sleep(self.delay)
            elif trouble in ("500", "503", "429"):
                return await _send(writer, int(trouble), {"trouble": trouble})
            elif trouble == "reset":
                return _reset(writer)
            elif trouble == "drop":
                return False
            elif trouble == "half":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                await writer.drain()
                return False
            await asyncio.sleep(float(query.get("late", "0")))
            return await _send(writer, 200, answer)
        if parts[0] == "effects":
            told = {"done": len(self.effects), "requests": self.requests, "most": self.most}
            return await _send(writer, 200, told)
        if parts[0] == "missed":
            known = self.effects.get(parts[1])
            return await _send(writer, 404 if known is None else 200, {"number": known})
        if parts[0] == "echo":
            asked: dict[str, object] = {
                "method": method,
                "path": split.path,
                "query": query,
                "headers": headers,
                "raw": split.query,
            }
            body = json.loads(content) if "json" in headers.get("content-type", "") else content.decode()
            return await _send(writer, 200, {**asked, "body": body})
        if parts[0] == "status":
            extra = f"Retry-After: {query['after']}\r\n" if "after" in query else ""
            return await _send(writer, int(parts[1]), {"status": parts[1]}, extra)
        if parts[0] == "slow":
            await asyncio.sleep(float(parts[1]))
            return await _send(writer, 200, {})
        if parts[0] == "hold":
            self.held[parts[1]] += 1
            await self.released[parts[1]].wait()
            return await _send(writer, 200, {})
        if parts[0] == "held":
            return await _send(writer, 200, {"held": self.held[parts[1]]})
        if parts[0] == "release":
            self.released[parts[1]].set()
            return await _send(writer, 200, {})
        if parts[0] == "redirect":
            return await _send(writer, 302, {}, f"Location: {query['to']}\r\n")
        if parts[0] == "text":
            return await _send(writer, 200, None, "Content-Type: text/plain\r\n", b"plain")
        if parts[0] == "large":
            return await _send(writer, 200, "x" * int(parts[1]))
        if parts[0] == "reset":
            return _reset(writer)
        if parts[0] == "repeats":
            return await _send(writer, 404, {}, f"X-Seen: {headers['x-key']}\r\n")
        return await _send(writer, 404, {})


async def _send(
    writer: asyncio.StreamWriter, status: int, body: object, extra: str = "", plain: bytes | None = None
) -> bool:
    content = plain if plain is not None else json.dumps(body).encode()
    kind = "" if plain is not None else "Content-Type: application/json\r\n"
    writer.write(f"HTTP/1.1 {status} Said\r\n{kind}{extra}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return True


def _reset(writer: asyncio.StreamWriter) -> bool:
    found = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def main() -> None:
    """Serve until killed."""
    asked = argparse.ArgumentParser()
    asked.add_argument("port_file", type=Path)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--trouble", type=float, default=0.0)
    asked.add_argument("--delay", type=float, default=DELAY_S)
    asked.add_argument("--ledger", type=Path)
    args = asked.parse_args()
    outside = Outside(args.seed, args.trouble, args.delay, args.ledger)
    server = await asyncio.start_server(outside.serve, "127.0.0.1", 0, limit=4 * 1024 * 1024)
    part = args.port_file.with_suffix(".part")
    part.write_text(str(server.sockets[0].getsockname()[1]))
    os.replace(part, args.port_file)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
