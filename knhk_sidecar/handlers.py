"""Handlers in the daemon's own process: an application's Python functions, plugged in by installing them beside it.

    [project.entry-points."knhk_sidecar.handlers"]
    "parcel/pack" = "shop.packing:pack"         # one task: a function, as a `Worker` takes it
    shop = "shop.work:HANDLERS"                 # or several: a mapping of tasks to functions

They are carried out by a `Worker` whose connection is the service itself, without a network between them: items are
leased, retried and given back as everybody else's. What cannot be loaded keeps the daemon from starting.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from typing import Final, Protocol, cast

from knhk_sidecar.api import pb
from knhk_sidecar.worker import Exchange, Handler, Refused, Worker
from knhk_workflow import CallMeta, InvalidInput, WorkflowError

PRINCIPAL: Final = "system:handlers"

_log = logging.getLogger("knhk_sidecar.worker")


class Unusable(Exception):
    """An entry point that is no handler; the message says which and why."""


class Streams(Protocol):
    """The service, as far as workers need it."""

    def stream_work_items(
        self, requests: AsyncIterator[pb.StreamWorkItemsRequest], meta: CallMeta
    ) -> AsyncIterator[pb.StreamWorkItemsResponse]:
        """A worker's channel."""
        ...


def installed(entries: Iterable[EntryPoint]) -> Mapping[str, Handler]:
    """What these entry points of installed packages name, by task. Raises Unusable."""
    found: dict[str, Handler] = {}
    for entry in sorted(entries, key=lambda each: each.name):
        for task, handler in _loaded(entry).items():
            if task in found:
                raise Unusable(f"two handlers are installed for task {task!r}, one of them by {entry.value}")
            found[task] = handler
    return found


def _loaded(entry: EntryPoint) -> Mapping[str, Handler]:
    try:
        made: object = entry.load()
    except Exception as error:
        raise Unusable(f"the handler {entry.name} = {entry.value} cannot be loaded: {error!r}") from error
    if callable(made):
        return {entry.name: cast("Handler", made)}
    if isinstance(made, Mapping) and made and all(isinstance(k, str) and callable(v) for k, v in made.items()):
        return cast("Mapping[str, Handler]", made)
    raise Unusable(f"the handler {entry.name} = {entry.value} is neither a function nor a map of tasks to functions")


def worker_of(handlers: Mapping[str, Handler], service: Streams, name: str, credit: int, grace: float) -> Worker:
    """A worker inside the daemon, named after it."""
    meta = CallMeta(principal=PRINCIPAL, method="/knhk.sidecar.v1.WorkItemService/StreamWorkItems")

    async def exchange(
        requests: AsyncIterator[pb.StreamWorkItemsRequest],
    ) -> AsyncGenerator[pb.StreamWorkItemsResponse, None]:
        responses = cast("AsyncGenerator[pb.StreamWorkItemsResponse, None]", service.stream_work_items(requests, meta))
        try:
            async for response in responses:
                yield response
        except InvalidInput as error:
            raise Refused(error.message) from error
        except WorkflowError as error:
            raise ConnectionError(error.message) from error
        except Exception as error:
            _log.exception("the daemon's own worker is cut off")
            raise ConnectionError(repr(error)) from error  # it connects again, as one outside would
        finally:
            await responses.aclose()

    @asynccontextmanager
    async def connect() -> AsyncIterator[Exchange]:
        yield exchange

    return Worker(connect, handlers, worker_id=name, credit=credit, grace=grace)
