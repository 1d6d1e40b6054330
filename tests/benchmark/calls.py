"""Connector calls over HTTP to a server of another process: begun, made and answered durably."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from knhk_workflow import ConnectorConfig, ConnectorSetup, StateStore, WorkflowEngine
from tests.benchmark.inside import concurrently
from tests.benchmark.processes import serve_questions

AT_ONCE = 64
START_SECONDS = 30.0
DOCUMENT = {
    "id": "calls",
    "tasks": {"call": {"connector": "http", "request": {"method": "POST", "url": "/effects", "body": "{'n': 1}"}}},
    "flows": [{"from": "start", "to": "call"}, {"from": "call", "to": "end"}],
}


class Call(msgspec.Struct, tag=True):
    """So many cases of one call each, in an engine below a directory."""

    directory: str
    cases: int
    times: int


class Called(msgspec.Struct, tag=True):
    """Calls per second, each time."""

    rates: list[float]


class Calls:
    """An engine and a server, made for one question."""

    async def answer(self, question: Call) -> Called:
        """Does what is asked."""
        place = Path(question.directory)
        server, port = _outside(place)
        try:
            base = f"http://127.0.0.1:{port}"
            config = {"base_url": base, "max_concurrent": AT_ONCE, "pool": {"size": AT_ONCE}}
            connectors = ConnectorSetup(
                configured=(ConnectorConfig("http", "http", json.dumps(config).encode()),),
                allow=(base,),
                networks=("127.0.0.0/8",),
            )
            async with WorkflowEngine(StateStore(str(place / "store")), connectors=connectors) as engine:
                await engine.register_workflow(DOCUMENT)
                return Called([await self._rate(engine, question.cases) for _ in range(question.times)])
        finally:
            server.kill()
            server.wait()

    async def _rate(self, engine: WorkflowEngine, cases: int) -> float:
        async def one() -> None:
            case = await engine.run_case("calls")
            await engine.wait_case(case.case_id)

        began = time.perf_counter()
        await concurrently(one, cases, AT_ONCE)
        return cases / (time.perf_counter() - began)


def _outside(place: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The server of the connectors' tests, behaving, and its port."""
    place.mkdir(parents=True)
    port_file = place / "port"
    server = subprocess.Popen([sys.executable, "-m", "tests.connectors.outside", str(port_file)])
    until = time.monotonic() + START_SECONDS
    while not port_file.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return server, int(port_file.read_text())


async def main() -> None:
    """Runs what the parent says until it closes the pipe."""
    await serve_questions(Call, Calls().answer)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
