"""The REST surface driven without a listener: a request in, what was sent out."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping

from knhk_sidecar.api.rest.surface import Surface


async def sent_for(surface: Surface, method: str, path: str, body: bytes = b"") -> list[MutableMapping[str, object]]:
    """The ASGI messages that a request of somebody on this host is answered with."""
    sent: list[MutableMapping[str, object]] = []
    came: list[bytes] = []

    async def send(message: MutableMapping[str, object]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, object]:
        if came:
            await asyncio.get_running_loop().create_future()  # whoever asks stays on the line
        came.append(body)
        return {"type": "http.request", "body": body, "more_body": False}

    scope: MutableMapping[str, object] = {
        "type": "http",
        "method": method,
        "raw_path": path.encode(),
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }
    await surface(scope, receive, send)
    return sent


def body_of(sent: list[MutableMapping[str, object]]) -> bytes:
    """The body of an answer."""
    return b"".join(part["body"] for part in sent[1:] if isinstance(part["body"], bytes))
