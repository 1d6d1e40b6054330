"""Births: how cases come to be, one by one or many in one durable write.

The new case is in nobody's hands before its first unit is durable: it is held under its id from the moment that it is
thought of, and that unit expects that no case had the id.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from knhk_workflow.core.commands import CreateCase
from knhk_workflow.core.decide import create
from knhk_workflow.errors import AlreadyExists, WorkflowError
from knhk_workflow.model.net import Model
from knhk_workflow.runtime import query
from knhk_workflow.runtime.clock import Clock, Ids
from knhk_workflow.runtime.definitions import Definitions
from knhk_workflow.runtime.inputs import JsonObject, checked_batch, checked_id, checked_schema, json_object
from knhk_workflow.runtime.live import LiveCase, LiveCases
from knhk_workflow.runtime.meta import CallMeta, too_late
from knhk_workflow.runtime.requests import Request, Requests
from knhk_workflow.runtime.steps import Steps
from knhk_workflow.runtime.views import CaseView
from knhk_workflow.store import ExpectationFailed, OutcomeUnknown, Unit


class RunRequest(msgspec.Struct, frozen=True):
    """One case to create, as in `create_case`."""

    spec_id: str
    data: JsonObject = None
    case_id: str = ""
    business_key: str = ""
    version: int = 0


class _Birth(msgspec.Struct, frozen=True, gc=False):
    """A case about to be created: checked input, and who asks."""

    case_id: str
    data: bytes
    business_key: str
    model: Model
    start: bool
    meta: CallMeta
    request: Request | None


class Births:
    """The creations of one engine."""

    def __init__(
        self, cases: LiveCases, definitions: Definitions, requests: Requests, steps: Steps, clock: Clock, ids: Ids
    ) -> None:
        self._cases = cases
        self._definitions = definitions
        self._requests = requests
        self._steps = steps
        self._clock = clock
        self._ids = ids

    async def create(self, asked: RunRequest, start: bool, meta: CallMeta, *, rest: bool = True) -> CaseView:
        """Create a case, and with `start` run it: to rest, or without `rest` as far as the commit that creates it goes.
        Raises InvalidInput, NotFound, AlreadyExists."""
        birth = await self._checked(asked, start, meta)
        try:
            live, unit, view = await self._conceive(birth)
            outcome = await self._cases.commit(live, unit)
            if not isinstance(outcome, int):
                raise _taken(outcome, birth.case_id)
        except WorkflowError as error:
            answer = await self._replayed_or(error, birth)
            if isinstance(answer, WorkflowError):
                raise answer from None
            return answer
        return await self._steps.rest(meta, birth.case_id, view) if rest and live.continuing is not None else view

    async def create_all(self, requests: Sequence[RunRequest], meta: CallMeta) -> list[CaseView | WorkflowError]:
        """Create cases and run them to rest, in one durable write; one element's error is that element's answer."""
        checked_batch("cases", len(requests))
        answers: dict[int, CaseView | WorkflowError] = {}
        births: dict[str, tuple[int, _Birth]] = {}
        for index, asked in enumerate(requests):
            try:
                birth = await self._checked(asked, True, meta.element(index))
                if birth.case_id in births:
                    raise AlreadyExists("case", birth.case_id, "it stands twice in this batch")
                births[birth.case_id] = (index, birth)
            except WorkflowError as error:
                answers[index] = error
        refused: list[tuple[int, _Birth, WorkflowError]] = []
        held: list[tuple[int, _Birth, LiveCase, Unit, CaseView]] = []
        try:
            for case_id in sorted(births):  # one order for all batches, so that two of them cannot wait for each other
                index, birth = births[case_id]
                try:
                    held.append((index, birth, *(await self._conceive(birth))))
                except WorkflowError as error:
                    refused.append((index, birth, error))
        except BaseException:
            self._cases.abandon([live for _, _, live, _, _ in held])
            raise
        outcomes = await self._cases.commit_all([(live, unit) for _, _, live, unit, _ in held])
        for (index, birth, _, _, view), outcome in zip(held, outcomes, strict=True):
            if isinstance(outcome, int):
                answers[index] = view
            else:
                refused.append((index, birth, _taken(outcome, birth.case_id)))
        for index, birth, refusal in refused:
            answers[index] = await self._replayed_or(refusal, birth)
        for index, _, live, _, view in held:
            if live.continuing is not None and answers[index] is view:  # not somebody else's case by now
                answers[index] = await self._steps.rest(meta, live.keys.case_id, view)
        return [answers[index] for index in range(len(requests))]

    async def _checked(self, asked: RunRequest, start: bool, meta: CallMeta) -> _Birth:
        """Check what a new case is asked with. Raises InvalidInput, NotFound."""
        data = json_object(asked.data, "data")
        checked_id(asked.business_key, "business_key", empty=True)
        request = None
        if meta.request_id:
            request = self._requests.of(
                meta, (asked.spec_id, asked.version, asked.case_id, asked.business_key, data, start)
            )
        case_id = checked_id(asked.case_id, "case_id", empty=True)
        if not case_id:
            case_id = f"c-{request.scope.hex()}" if request is not None else self._ids.case_id()
        model = self._definitions.cached(meta.tenant, asked.spec_id, asked.version)
        if model is None or asked.version:
            model = await self._definitions.active_model(meta.tenant, asked.spec_id, asked.version)
        checked_schema(model.spec, data)
        return _Birth(case_id, data, asked.business_key, model, start, meta, request)

    async def _conceive(self, birth: _Birth) -> tuple[LiveCase, Unit, CaseView]:
        """The new case, held, what it writes, and its view. Whatever it raises (AlreadyExists), nothing is held."""
        meta, model = birth.meta, birth.model
        live = self._cases.entry(meta.tenant, birth.case_id)
        if live.busy:
            await live.acquire()
        live.busy = True
        try:
            if live.state is not None:
                raise AlreadyExists("case", birth.case_id, "choose another case_id")
            now = self._clock.now()
            if meta.deadline and now > meta.deadline:
                raise too_late()
            command = CreateCase(
                meta.tenant,
                birth.case_id,
                model.spec.id,
                model.version,
                model.digest,
                self._ids.salt(),
                birth.data,
                birth.business_key,
                birth.start,
            )
            step = create(model, command, now)
            live.state, live.model, live.created_by = step.case, model, meta.principal
            record = self._requests.record(live.keys, birth.request, step.case.sequence, b"")
            unit = self._cases.unit(live, step, meta, record)
            return live, unit, query.case_view(step.case, model, live.created_by)
        except AlreadyExists:
            self._cases.done(live)
            raise
        except BaseException:
            self._cases.drop(live)
            live.release()
            raise

    async def _replayed_or(self, error: WorkflowError, birth: _Birth) -> CaseView | WorkflowError:
        """The answer of an earlier creation with the same request id; otherwise the error."""
        if birth.request is None or isinstance(error, OutcomeUnknown):
            return error
        try:
            record = await self._requests.find(birth.request, birth.meta.tenant, birth.case_id)
            if record is None:
                return error
            if birth.meta.witness is not None:
                birth.meta.witness.recorded = False  # nothing was written: it was done before
            return await self._steps.rest(msgspec.structs.replace(birth.meta, deadline=0), record.case_id)
        except WorkflowError as other:
            return other


def _taken(outcome: WorkflowError, case_id: str) -> WorkflowError:
    """A creation whose expectations did not hold found its id taken."""
    if isinstance(outcome, ExpectationFailed):
        return AlreadyExists("case", case_id, "choose another case_id")
    return outcome
