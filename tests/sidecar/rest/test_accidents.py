"""What a mistake of ours looks like from outside."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence

import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.api.rest.routes import RouteTable
from knhk_sidecar.api.rest.surface import Surface
from knhk_sidecar.pipeline.health import Component
from knhk_sidecar.telemetry.log import Log
from tests.sidecar.pipeline.road import METHODS, Road
from tests.sidecar.rest.asgi import body_of, sent_for


class Broken:
    """A daemon that cannot even say how it is."""

    service = "knhk-sidecar"
    version = "0"

    def ready(self) -> tuple[bool, str]:
        raise RuntimeError("the password is hunter2")

    def components(self) -> Sequence[Component]:
        raise RuntimeError("the password is hunter2")


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/cases/%ff"])
async def test_an_accident_is_a_problem_and_one_line_of_the_log(path: str) -> None:
    road, lines = Road(), io.StringIO()
    Log("info", "json", lines)
    surface = Surface(road.pipeline, Broken(), RouteTable(pb.SERVICES, METHODS), 1_000, 1_000, asyncio.Event())
    sent = await sent_for(surface, "GET", path)
    problem = json.loads(body_of(sent))
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    if path.startswith("/cases"):
        assert (sent[0]["status"], problem["reason"], found) == (400, "INVALID_ARGUMENT", [])
        return
    assert (sent[0]["status"], problem["reason"]) == (500, "INTERNAL")
    assert "hunter2" not in str(problem)
    (line,) = found
    assert line["event"] == "internal_error"
    assert line["error_id"] == problem["info"]["error_id"]
