"""Runs of a pattern's own net: in memory (see `sandbox`), or kept as a case of the workflow `wcp-NN`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from knhk_workflow.errors import InvalidInput, LimitExceeded, NotFound, Unsupported, WrongState
from knhk_workflow.patterns.catalogue import HINT, find
from knhk_workflow.runtime import sandbox
from knhk_workflow.runtime.births import Births, RunRequest
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.definitions import Definitions
from knhk_workflow.runtime.meta import CallMeta, too_late
from knhk_workflow.runtime.pages import PAGE_SIZE_MAX
from knhk_workflow.runtime.query import Query
from knhk_workflow.runtime.requests import Requests
from knhk_workflow.runtime.steps import Steps
from knhk_workflow.runtime.views import HistoryEvent, PatternExecutionContext, PatternResult

RUN_EVENTS: Final = 50  # of a pattern's run in memory, before others get a turn; about 1 ms


class PatternRun:
    """A pattern's run in memory, as an asynchronous iteration over its trace."""

    def __init__(self, run: sandbox.Run) -> None:
        self._run = run

    async def __aiter__(self) -> AsyncIterator[HistoryEvent]:
        for event in self._run:
            yield event
            await asyncio.sleep(0)

    @property
    def result(self) -> PatternResult:
        """What the run gave. Only after the iteration has ended."""
        return self._run.result


def script_of(pattern_id: int | str, context: PatternExecutionContext) -> sandbox.Script:
    """What is to be run. Raises InvalidInput for an unknown pattern or an impossible script, Unsupported."""
    try:
        pattern = find(pattern_id)
    except NotFound as error:
        raise InvalidInput.field("pattern_id", f"{pattern_id!r} is not a pattern", HINT) from error
    return sandbox.script(pattern, context)


async def run_in_memory(asked: sandbox.Script, clock: Clock, meta: CallMeta) -> PatternResult:
    """The whole run, with turns for others in between."""
    run = sandbox.Run(asked, clock, meta.principal)
    for count, _ in enumerate(run):
        if count % RUN_EVENTS == 0:
            if meta.deadline and clock.now() > meta.deadline:
                raise too_late()
            if count:
                await asyncio.sleep(0)
    return run.result


class KeptRuns:
    """Runs as cases of one engine."""

    def __init__(
        self, definitions: Definitions, births: Births, steps: Steps, requests: Requests, query: Query
    ) -> None:
        self._definitions = definitions
        self._births = births
        self._steps = steps
        self._requests = requests
        self._query = query

    async def run(self, asked: sandbox.Script, meta: CallMeta) -> PatternResult:
        """The run as a case. Repeated with its request id, it takes up where it was left and makes no move twice.
        Raises AlreadyExists when the case id is taken, Unsupported when the script moves the clock."""
        if any(move.move == sandbox.ADVANCE for move in asked.moves):
            raise Unsupported("advance_clock in a durable run", "it lives in the engine's own time; run it in memory")
        workflow = await self._definitions.register(asked.pattern.document, "json", meta)
        birth = RunRequest(workflow.spec_id, asked.data, asked.case_id, asked.workflow_id, workflow.version)
        case = await self._births.create(birth, True, meta)
        case_id, message = case.case_id, ""
        for index, move in enumerate(asked.moves):
            element = msgspec.structs.replace(meta.element(index), roles=())  # the script is everybody in turn
            if element.request_id and await self._requests.known(element, case_id):
                continue
            case = await self._steps.look(meta, case_id)
            try:
                await self._steps.on_case(case_id, sandbox.command(move, index, case), element, rest=True)
            except sandbox.Refusal as refusal:
                message = str(refusal)
                break
            except (WrongState, LimitExceeded) as error:
                message = sandbox.refused(error, move, index, case)
                break
        case = await self._steps.look(meta, case_id)
        trace: list[HistoryEvent] = []
        while len(trace) < case.sequence:
            page = await self._query.history(meta.tenant, case_id, len(trace), PAGE_SIZE_MAX, False)
            trace.extend(page.items)
        return sandbox.result(asked, case, trace, message)
