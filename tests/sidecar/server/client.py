"""Clients of the daemon: channels with and without certificates, and any method by its path."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.message import Message

from knhk_sidecar.app import Addresses
from knhk_sidecar.pipeline import Method

ANY_PORT = "127.0.0.1:0"
EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
ANSWER_SECONDS = 60.0  # every method answers an empty request, and every stream that is open tells so, in milliseconds


def secure(address: str, ca: bytes, cert: bytes | None = None, key: bytes | None = None) -> grpc.aio.Channel:
    """An mTLS channel; the server is verified as `localhost`."""
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.ssl_target_name_override", "localhost")])


def developer(addresses: Addresses) -> grpc.aio.Channel:
    """An mTLS channel with the developer's certificate."""
    read = (Path(path).read_bytes() for path in (addresses.ca, addresses.cert, addresses.key))
    return secure(addresses.grpc, *read)


async def code_of(
    channel: grpc.aio.Channel, method: Method, request: Message | None = None, *, let_in: bool = True
) -> str:
    """The code of a call of any method with an empty request; OK for a stream from which one message has come.

    `let_in`: whether the stages are expected to let it in. Otherwise a stream of requests says nothing, since a message
    that meets the end of its call makes grpc.aio tell INTERNAL instead of the server's code.
    """
    send, receive = method.request.SerializeToString, method.response.FromString
    message = method.request() if request is None else request
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            if method.client_streaming and method.server_streaming:
                both = channel.stream_stream(method.path, send, receive)()  # type: ignore[call-arg]  # what is written follows
                if let_in:
                    await both.write(message)
                return await _code_of_stream(both)
            if method.client_streaming:
                one = channel.stream_unary(method.path, send, receive)()  # type: ignore[call-arg]
                if let_in:
                    await one.write(message)
                    await one.done_writing()
                await one
            elif method.server_streaming:
                return await _code_of_stream(channel.unary_stream(method.path, send, receive)(message))
            else:
                await channel.unary_unary(method.path, send, receive)(message)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def _code_of_stream(
    call: grpc.aio.UnaryStreamCall[Message, Message] | grpc.aio.StreamStreamCall[Message, Message],
) -> str:
    """The code of a stream that ends without a message; OK after one, when it is left."""
    if await call.read() is EOF:
        return str((await call.code()).name)
    call.cancel()
    return "OK"
