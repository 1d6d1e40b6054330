"""A gRPC service of the tests, described by a proto file that only the server has."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection
from grpc_tools import protoc  # type: ignore[import-untyped]  # it has no stubs

PROTO = """
syntax = "proto3";
package shop.v1;
import "google/protobuf/timestamp.proto";

message PlaceRequest { string article = 1; int32 item_count = 2; google.protobuf.Timestamp due = 3; }
message PlaceResponse { string number = 1; int32 seen = 2; repeated string metadata = 3; }
service Orders {
  rpc Place(PlaceRequest) returns (PlaceResponse);
  rpc Fail(PlaceRequest) returns (PlaceResponse);
  rpc Watch(PlaceRequest) returns (stream PlaceResponse);
}
"""
SERVICE = "shop.v1.Orders"

Handler = Callable[[Message, grpc.aio.ServicerContext[Message, Message]], Awaitable[Message]]


def described() -> bytes:
    """A FileDescriptorSet of the service and what it imports."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "orders.proto").write_text(PROTO)
        output = Path(directory) / "set"
        include = str(Path(protoc.__file__).parent / "_proto")
        arguments = ["protoc", f"-I{directory}", f"-I{include}", "--include_imports", f"--descriptor_set_out={output}"]
        assert protoc.main([*arguments, "orders.proto"]) == 0
        return output.read_bytes()


class Orders:
    """The service: places an order once for each key, and fails as the article says."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(described()).file:
            self.pool.Add(file)
        kind = self.pool.FindMessageTypeByName
        self._request = message_factory.GetMessageClass(kind("shop.v1.PlaceRequest"))
        self._response = message_factory.GetMessageClass(kind("shop.v1.PlaceResponse"))

    async def place(self, request: Message, context: grpc.aio.ServicerContext[Message, Message]) -> Message:
        metadata = {name: str(value) for name, value in context.invocation_metadata() or ()}
        key = metadata["idempotency-key"]
        self.seen[key] = self.seen.get(key, 0) + 1
        asked = json_format.MessageToDict(request)
        lines = [f"{name}={metadata[name]}" for name in ("x-shop", "authorization") if name in metadata]
        number = f"{asked['article']} x {asked['itemCount']} by {asked['due']}"
        return json_format.ParseDict({"number": number, "seen": self.seen[key], "metadata": lines}, self._response())

    async def fail(self, request: Message, context: grpc.aio.ServicerContext[Message, Message]) -> Message:
        code = grpc.StatusCode[json_format.MessageToDict(request)["article"]]
        await context.abort(code, "as asked")

    async def serve(self, *, reflects: bool = True) -> tuple[grpc.aio.Server, int]:
        """A server on a free port."""
        server = grpc.aio.server()
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                work,
                request_deserializer=self._request.FromString,
                response_serializer=self._response.SerializeToString,
            )
            for name, work in (("Place", self.place), ("Fail", self.fail))
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        if reflects:
            reflection.enable_server_reflection((SERVICE, reflection.SERVICE_NAME), server, pool=self.pool)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port
