"""Where bodies are read: a large one beside the event loop, which goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.api.rest import surface as module
from knhk_sidecar.api.rest.routes import RouteTable
from knhk_sidecar.api.rest.surface import BODY_AT_ONCE_BYTES, Surface
from knhk_sidecar.pipeline.health import Component
from tests.sidecar.pipeline.road import METHODS, Road
from tests.sidecar.rest.asgi import sent_for

WAIT_S = 60.0


class Well:
    """A daemon that is well."""

    service = "knhk-sidecar"
    version = "0"

    def ready(self) -> tuple[bool, str]:
        return True, ""

    def components(self) -> Sequence[Component]:
        return ()


@pytest.mark.parametrize("large", [True, False])
async def test_a_large_body_is_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    surface = Surface(Road().pipeline, Well(), RouteTable(pb.SERVICES, METHODS), 4_000_000, 1_000, asyncio.Event())
    read, begun, go_on = module._read_body, threading.Event(), threading.Event()
    by: list[int] = []

    def held(*asked: object) -> None:
        by.append(threading.get_ident())
        begun.set()
        if large:
            assert go_on.wait(WAIT_S)
        read(*asked)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(module, "_read_body", held)
    text = "x" * (BODY_AT_ONCE_BYTES if large else 1)
    asked = asyncio.create_task(sent_for(surface, "POST", "/cases", b'{"spec_id": "%s"}' % text.encode()))
    if large:
        while not (begun.is_set() or asked.done()):  # noqa: ASYNC110  # another thread says it
            await asyncio.sleep(0)
        assert (await sent_for(surface, "GET", "/health/live"))[0]["status"] == 200
        go_on.set()
    assert (await asked)[0]["status"] == 200
    assert (by[0] == threading.get_ident()) is not large
