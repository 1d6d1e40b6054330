"""Clients of the daemon: channels with and without certificates, and any method by its path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.message import Message

from knhk_sidecar.app import Addresses
from knhk_sidecar.pipeline import Method

ANY_PORT = "127.0.0.1:0"
EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
QUIET_SECONDS = 0.3  # a watch of which nothing has come by then is open


def secure(address: str, ca: bytes, cert: bytes | None = None, key: bytes | None = None) -> grpc.aio.Channel:
    """An mTLS channel; the server is verified as `localhost`."""
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.ssl_target_name_override", "localhost")])


def developer(addresses: Addresses) -> grpc.aio.Channel:
    """An mTLS channel with the developer's certificate."""
    read = (Path(path).read_bytes() for path in (addresses.ca, addresses.cert, addresses.key))
    return secure(addresses.grpc, *read)


async def code_of(channel: grpc.aio.Channel, method: Method, request: Message | None = None) -> str:
    """The code of a call of any method with an empty request; a stream is read for one message or QUIET_SECONDS."""
    send, receive = method.request.SerializeToString, method.response.FromString
    message = method.request() if request is None else request

    async def one() -> AsyncIterator[Message]:
        # A message that meets the end of its call makes grpc.aio tell INTERNAL instead of the server's code.
        until = asyncio.get_running_loop().time() + QUIET_SECONDS
        while asyncio.get_running_loop().time() < until:
            if streaming and streaming[0].done():
                return
            await asyncio.sleep(0.01)
        yield message

    streaming: list[grpc.aio.Call] = []

    try:
        async with asyncio.timeout(10):
            if method.client_streaming and method.server_streaming:
                both = channel.stream_stream(method.path, send, receive)(one())
                streaming.append(both)
                await both.read()
            elif method.client_streaming:
                await channel.stream_unary(method.path, send, receive)(one())
            elif method.server_streaming:
                call = channel.unary_stream(method.path, send, receive)(message)
                done, _ = await asyncio.wait([asyncio.ensure_future(call.read())], timeout=QUIET_SECONDS)
                if done and done.pop().result() is EOF:
                    return str((await call.code()).name)
                call.cancel()
            else:
                await channel.unary_unary(method.path, send, receive)(message, timeout=5)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"
