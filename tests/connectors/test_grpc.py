"""Tasks that call a gRPC service, by reflection or by a file that describes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from knhk_sidecar.connectors.grpc import make
from knhk_workflow import ConnectorConfig, ConnectorSetup, InvalidInput, WorkflowEngine
from tests.connectors.calling import data, engine, until_open
from tests.connectors.orders import SERVICE, Orders, described

PLACE = f"{SERVICE}/Place"


def setup(port: int, **config: object) -> ConnectorSetup:
    whole = {"target": f"127.0.0.1:{port}", "plaintext": True, **config}
    return ConnectorSetup(
        configured=(ConnectorConfig("shop", "grpc", json.dumps(whole).encode()),),
        allow=(f"grpc://127.0.0.1:{port}",),
        networks=("127.0.0.0/8",),
        kinds={"grpc": make},
        environ={"SHOP": "shop-secret"},
    )


def document(method: str, message: str, **task: object) -> dict[str, object]:
    request = {"method": method, "message": message, "metadata": {"x-shop": "${data.shop}"}}
    flows = [{"from": "start", "to": "order"}, {"from": "order", "to": "end"}]
    return {"id": "order", "tasks": {"order": {"connector": "shop", "request": request, **task}}, "flows": flows}


ORDER = "{'article': data.article, 'item_count': 2, 'due': '2030-01-31T12:00:00Z'}"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server, found = await Orders().serve()
    yield found
    await server.stop(0)


async def ran(opened: WorkflowEngine, asked: dict[str, object], article: str = "pen") -> str:
    await opened.register_workflow(asked)
    return (await opened.run_case("order", {"article": article, "shop": "north"})).case_id


async def test_a_method_that_reflection_describes(port: int) -> None:
    async with engine(setup(port, bearer={"env": "SHOP"})) as opened:
        case = await until_open(opened, await ran(opened, document(PLACE, ORDER)))
        assert not case.incidents, case.incidents[0].message
        assert data(case) == {
            "article": "pen",
            "shop": "north",
            "number": "pen x 2 by 2030-01-31T12:00:00Z",
            "seen": 1,
            "metadata": ["x-shop=north", "authorization=Bearer ********"],
        }
        assert (await opened.probe_connector("shop")).healthy


async def test_a_method_that_a_file_describes(tmp_path: Path) -> None:
    file = tmp_path / "orders.bin"
    file.write_bytes(described())
    server, found = await Orders().serve(reflects=False)
    async with engine(setup(found, descriptors=str(file))) as opened:
        case = await until_open(opened, await ran(opened, document(PLACE, ORDER, result={"n": "data.body.number"})))
        assert not case.incidents, case.incidents[0].message
        assert data(case)["n"] == "pen x 2 by 2030-01-31T12:00:00Z"
    await server.stop(0)


@pytest.mark.parametrize(
    ("method", "message", "article", "said"),
    [
        (f"{SERVICE}/Fail", ORDER, "NOT_FOUND", "grpc_not_found: "),
        (f"{SERVICE}/Fail", ORDER, "UNAVAILABLE", "grpc_unavailable: "),
        (f"{SERVICE}/None", ORDER, "pen", "no_method: the server has no"),
        ("shop.v1.None/Place", ORDER, "pen", "no_method: "),
        (f"{SERVICE}/Watch", ORDER, "pen", "is a stream"),
        (PLACE, "{'colour': 'red'}", "pen", "bad_request: "),
        ("Place", ORDER, "pen", "package.Service/Method"),
    ],
)
async def test_a_failure_says_what_it_was(port: int, method: str, message: str, article: str, said: str) -> None:
    async with engine(setup(port)) as opened:
        case = await until_open(opened, await ran(opened, document(method, message, retry=1), article))
        assert said in case.incidents[0].message


async def test_what_is_unavailable_is_tried_again(port: int) -> None:
    retry = {"max_attempts": 3, "backoff": 0}
    async with engine(setup(port)) as opened:
        asked = document(f"{SERVICE}/Fail", ORDER, retry=retry)
        case = await until_open(opened, await ran(opened, asked, "UNAVAILABLE"))
        assert (await opened.list_dead_letters()).items[0].attempts == 3
        assert case.state == "running"


async def test_a_secret_is_named_and_not_written(port: int) -> None:
    with pytest.raises(InvalidInput, match="a secret is given by reference"):
        async with engine(setup(port, metadata={"authorization": "Bearer x"})):
            pass


async def test_a_description_that_does_not_end_is_cut_off() -> None:
    """A server that answers one question about itself for ever."""

    async def endless(
        asked: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        answer = reflection_pb2.ServerReflectionResponse()
        answer.error_response.error_message = "no"
        while True:
            yield answer.SerializeToString()

    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(endless)
    name = "grpc.reflection.v1alpha.ServerReflection"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}),))
    found = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with engine(setup(found)) as opened, asyncio.timeout(60):
        case = await until_open(opened, await ran(opened, document(PLACE, ORDER, retry=1)))
        assert "no_method: " in case.incidents[0].message
    await server.stop(0)


async def test_a_task_does_not_choose_who_gets_the_credentials(port: int) -> None:
    with pytest.raises(InvalidInput, match="credentials"):
        async with engine(setup(port, target="", bearer={"env": "SHOP"})):
            pass
