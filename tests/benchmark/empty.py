"""A server that does nothing: the same gRPC server, options and TLS as the daemon's, with empty methods.

`bare` is registered with gRPC directly: what the stack itself costs. `piped` goes through the daemon's own transport
and pipeline to an empty handler: the difference is what every call pays before any work. Two servers in one process.
`Work` behind the pipeline keeps the processor busy for WORK_SECONDS: what is done under overload.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time

import grpc
import grpc.aio
import msgspec
import uvloop
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from knhk_sidecar.api.rpc import Listeners, Methods, RpcServer, server_options
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import ANONYMOUS
from knhk_sidecar.identity.tls import FileSource, TlsFiles
from knhk_sidecar.pipeline import Limits, Method, Pipeline
from knhk_sidecar.pipeline.permissions import Permission
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import CallMeta
from tests.benchmark.processes import FREE, serve_questions

SERVICE = "knhk.bench.Empty"
PATH = f"/{SERVICE}/Call"
WORK_PATH = f"/{SERVICE}/Work"
WORK_SECONDS = 0.004


def _method(name: str) -> Method:
    return Method(
        path=f"/{SERVICE}/{name}",
        service=SERVICE,
        name=name,
        request=Empty,
        response=Empty,
        client_streaming=False,
        server_streaming=False,
        permission=Permission.CASE_READ,
        subjects=(),
        has_request_id=False,
        waits=False,
        wait_field=False,
    )


class WhereAreYou(msgspec.Struct):
    """Asks for the addresses."""


class Addresses(msgspec.Struct):
    """`host:port` of both servers."""

    bare: str
    piped: str


class Service:
    """The empty handler behind the pipeline."""

    async def call(self, request: Empty, meta: CallMeta) -> Empty:
        """Nothing."""
        return Empty()

    async def work(self, request: Empty, meta: CallMeta) -> Empty:
        """So many milliseconds of processor time."""
        until = time.thread_time() + WORK_SECONDS
        while time.thread_time() < until:
            pass
        return Empty()


async def _call(request: Message, context: grpc.aio.ServicerContext[Message, Message]) -> Message:
    return Empty()


async def main(cert: str, key: str, ca: str) -> None:
    """Serves until the parent closes the pipe."""
    config = SidecarConfig(rate_limit_per_second=1e9)  # counted like everybody's calls, and never reached
    tls = FileSource(TlsFiles(cert, key, ca))
    bare = grpc.aio.server(options=server_options(config))
    handler = grpc.unary_unary_rpc_method_handler(_call, Empty.FromString, Empty.SerializeToString)
    bare.add_generic_rpc_handlers([Methods({PATH: handler})])
    port = bare.add_secure_port(FREE, tls.credentials())
    await bare.start()
    pipeline = Pipeline(
        {PATH: _method("Call"), WORK_PATH: _method("Work")},
        {SERVICE: Service()},
        leaves=tls.leaves,
        plain=ANONYMOUS,
        now=time.time_ns,
        log=Log("warning"),
        counters=Counters(),
        limits=Limits.of(config),
        policies=Policies.without_file(tls.trust_domain.name, "application"),
    )
    piped = RpcServer(pipeline, config)
    real = await piped.start(Listeners(FREE, tls.credentials()))
    gc.freeze()  # as the daemon does

    async def tell(_: WhereAreYou) -> Addresses:
        return Addresses(f"127.0.0.1:{port}", real.main)

    await serve_questions(WhereAreYou, tell)
    await piped.stop(0)
    await bare.stop(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
