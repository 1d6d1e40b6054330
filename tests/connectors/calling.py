"""Engines that may call the test's own server, and workflows that do."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from knhk_workflow import CaseView, ConnectorConfig, ConnectorSetup, HistoryEvent, StateStore, WorkflowEngine

Fields = Mapping[str, object]
LOOPBACK = ("127.0.0.0/8",)


def setup(base: str, *, environ: Mapping[str, str] | None = None, **config: object) -> ConnectorSetup:
    """One HTTP connector, `http`, at `base`; it may go there and nowhere else."""
    whole = {"base_url": base, "pool": {"size": 8}, **config}
    return ConnectorSetup(
        configured=(ConnectorConfig("http", "http", json.dumps(whole).encode()),),
        allow=(base,),
        networks=LOOPBACK,
        environ=environ or {},
    )


def engine(connectors: ConnectorSetup, path: Path | None = None) -> WorkflowEngine:
    """An engine over a store in memory, or in a directory."""
    return WorkflowEngine(StateStore(str(path) if path is not None else ":memory:"), connectors=connectors)


def calls(task: Fields, **more: object) -> dict[str, object]:
    """A workflow of one task that calls."""
    flows = [{"from": "start", "to": "call"}, {"from": "call", "to": "end"}]
    return {"id": "calls", "tasks": {"call": {"connector": "http", **task}}, "flows": flows, **more}


def data(case: CaseView) -> dict[str, object]:
    """The case's data."""
    found: dict[str, object] = json.loads(case.data)
    return found


async def history(opened: WorkflowEngine, case_id: str) -> list[HistoryEvent]:
    """Every event of a case."""
    return list((await opened.get_case_history(case_id, page_size=1000)).items)


async def held(base: str, name: str) -> None:
    """Until the server holds a call of this name."""
    async with asyncio.timeout(60):
        while not json.loads(await asyncio.to_thread(_get, f"{base}/held/{name}"))["held"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def release(base: str, name: str) -> None:
    """Lets the server answer those that it holds."""
    await asyncio.to_thread(_get, f"{base}/release/{name}")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
    return content


async def until_open(opened: WorkflowEngine, case_id: str) -> CaseView:
    """The case once it has ended or waits for a person."""
    async for _ in opened.watch_case(case_id):
        case = await opened.get_case(case_id)
        if case.incidents or case.state not in ("created", "running"):
            return case
    return await opened.get_case(case_id)
