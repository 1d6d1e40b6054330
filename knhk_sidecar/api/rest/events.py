"""Server streams over HTTP.

A stream of events is `text/event-stream` (WHATWG server-sent events): `id:` is the resume token, `data:` the event as
JSON, a comment a sign of life, `event: end` the last word of a stream that is complete and `event: problem` that of
one that failed. A client that reconnects sends `Last-Event-ID` and loses nothing; when nothing is left to tell it is
answered 204, which ends its reconnecting.

A stream of chunks is a download: the chunks, joined, are the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from knhk_sidecar.api.rest.canonical import dump

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message
    from starlette.types import Send

    from knhk_sidecar.api.faults import HttpProblem

RESUME_FIELDS: Final = ("resume_token", "after_sequence")  # of a request: where to go on
TOKEN_FIELDS: Final = ("resume_token", "sequence")  # of a response: the value for it
NO_STORE: Final = (b"cache-control", b"no-store")


def resume_field(descriptor: Descriptor) -> str:
    """The field of a request that `Last-Event-ID` fills; empty when there is none."""
    return next((name for name in RESUME_FIELDS if name in descriptor.fields_by_name), "")


@dataclass(slots=True)
class Stream:
    """The response of one streaming call.

    `message` is what the pipeline sends to; headers leave with the first message.
    """

    send: Send
    headers: tuple[tuple[bytes, bytes], ...] = ()
    started: bool = field(default=False, init=False)

    async def open(self) -> None:
        """Sends the headers now, so that a client knows that it is heard before anything happens."""
        if not self.started:
            await self._start(b"text/event-stream", ())
            await self._write(b": open\n\n")

    async def message(self, message: Message) -> None:
        """Sends one message of the stream."""
        fields = message.DESCRIPTOR.fields_by_name
        if "chunk" in fields:
            await self._chunk(message)
            return
        await self.open()
        token = next((str(getattr(message, name)) for name in TOKEN_FIELDS if name in fields), "")
        head = f"id: {token}\n".encode() if token else b""
        if "event" in fields and not message.HasField("event"):
            await self._write(head + b": alive\n\n")  # an id without data: the client remembers it, and fires no event
            return
        data = dump(message, "event" if "event" in fields else "")
        await self._write(head + b"data: " + data + b"\n\n")

    async def end(self) -> None:
        """The stream is complete."""
        if self.started:
            if self._is_events:
                await self._write(b"event: end\ndata: {}\n\n")
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def cut(self) -> None:
        """Ends the response without a last word; of a download the client then knows that it is not whole."""
        if self._is_events:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, problem: HttpProblem) -> None:
        """The stream broke after its start. A download is cut off: its length tells the client."""
        if self._is_events:
            await self._write(b"event: problem\ndata: " + msgspec.json.encode(problem) + b"\n\n")
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    _is_events: bool = field(default=True, init=False)

    async def _chunk(self, message: Message) -> None:
        if not self.started:
            media_type = getattr(message, "media_type", "") or "application/octet-stream"
            name = getattr(message, "file_name", "").replace('"', "").replace("\r", "").replace("\n", "")
            disposition = f'attachment; filename="{name}"'.encode("ascii", "replace") if name else b"attachment"
            self._is_events = False
            await self._start(media_type.encode("latin-1", "replace"), ((b"content-disposition", disposition),))
        await self._write(getattr(message, "chunk"))  # noqa: B009 - any message with a chunk, not one type

    async def _start(self, media_type: bytes, more: tuple[tuple[bytes, bytes], ...]) -> None:
        self.started = True
        headers = [(b"content-type", media_type), NO_STORE, *self.headers, *more]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _write(self, body: bytes) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
