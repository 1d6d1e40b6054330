"""Effects that were given up: the incidents of connectors' tasks, seen as a queue.

A call whose attempts are spent, or that must not be repeated, leaves an incident on its task, and the case goes on
elsewhere. That incident is the dead letter; there is no second list that could disagree. Retrying one makes the call
again, with the request evaluated anew and under the same key; discarding one goes on without the effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core.case import Case, Incident
from knhk_workflow.errors import NotFound, StoreCorrupt, StoreFormat
from knhk_workflow.model.net import Model
from knhk_workflow.runtime.inputs import parse_incident_id
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.query import Query
from knhk_workflow.runtime.steps import Steps
from knhk_workflow.runtime.views import DeadLetterView, IncidentView, Page

KIND: Final = "connector_failed"

Action = Literal["retry", "skip"]
STATUS: Final[Mapping[Action, str]] = {"retry": "retrying", "skip": "discarded"}


class DeadLetters:
    """The dead letters of one engine."""

    def __init__(self, query: Query, steps: Steps) -> None:
        self._query = query
        self._steps = steps

    async def page(
        self, meta: CallMeta, case_id: str, connector: str, page_size: int, page_token: str
    ) -> Page[DeadLetterView]:
        """Those that are pending, by case. A page that is filtered may be short and still have a token. Of a case that
        is damaged there is the incident in its list only."""

        async def look_up(incident: IncidentView) -> DeadLetterView | None:
            found = await self._listed(incident.incident_id, meta) if incident.kind == KIND else None
            return found if found is not None and connector in ("", found.connector) else None

        bound_to = f"dead letters {meta.tenant} {case_id} {connector}"
        return await self._query.known_incidents(meta.tenant, case_id, look_up, page_size, page_token, bound_to)

    async def resolve(self, letter_id: str, action: Action, reason: str, meta: CallMeta) -> DeadLetterView:
        """Make the call again, or go on without it. Raises NotFound."""
        found = await self._find(letter_id, meta)
        if found is None and not meta.request_id:  # with a request id it may be gone because this call was made before
            raise NotFound("dead letter", letter_id, "it may be retried or discarded already")
        number, case_id = parse_incident_id(letter_id)
        if found is None:
            async with self._steps.held(meta, case_id) as live:
                other = live.loaded()[0].incidents.get(number)
            if other is not None:  # of another kind: who may mend connectors' calls may not decide it
                raise NotFound("dead letter", letter_id)
        await self._steps.on_case(case_id, c.ResolveIncident(number, action, b"", reason), meta, rest=True)
        if found is None:
            found = DeadLetterView(letter_id, "", case_id, "", 0, "", "", b"", 0, 0)
        return msgspec.structs.replace(found, status=STATUS[action])

    async def _listed(self, letter_id: str, meta: CallMeta) -> DeadLetterView | None:
        """`_find` for a list: the letter of a case that is damaged, or was purged meanwhile, is left out."""
        try:
            return await self._find(letter_id, meta)
        except (NotFound, StoreCorrupt, StoreFormat):
            return None

    async def _find(self, letter_id: str, meta: CallMeta) -> DeadLetterView | None:
        number, case_id = parse_incident_id(letter_id)
        async with self._steps.held(meta, case_id) as live:
            return letter(*live.loaded(), number)


def letter(case: Case, model: Model, number: int) -> DeadLetterView | None:
    """The dead letter that an incident of a case is; None when it is none, or there is none (any more)."""
    incident = case.incidents.get(number)
    if incident is None or incident.kind != KIND:
        return None
    activation = case.activations.get(incident.activation)
    run = activation.instances.get(incident.instance) if activation is not None else None
    node = model.nets[case.nets[incident.net].name].tasks.get(incident.task)
    code, _, message = _told(incident).partition(": ")
    return DeadLetterView(
        f"{number}@{case.case_id}",
        node.calls.connector if node is not None and node.calls is not None else "",
        case.case_id,
        incident.task,
        run.attempt if run is not None else 0,
        code,
        message or code,
        model.veil.input(incident.task, run.data) if run is not None else b"",
        run.offered_at if run is not None else 0,
        incident.raised_at,
    )


def _told(incident: Incident) -> str:
    """What the incident says about the last attempt, without the words before it."""
    return incident.message.removeprefix(f"task {incident.task!r} failed: ")
