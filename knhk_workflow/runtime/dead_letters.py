"""Effects that were given up: the incidents of connectors' tasks, seen as a queue.

A call whose attempts are spent, or that must not be repeated, leaves an incident on its task, and the case goes on
elsewhere. That incident is the dead letter; there is no second list that could disagree. Retrying one makes the call
again, with the request evaluated anew and under the same key; discarding one goes on without the effect.
"""

from __future__ import annotations

from typing import Final

from knhk_workflow.core.case import Case, Incident
from knhk_workflow.model.net import Model
from knhk_workflow.runtime.views import DeadLetterView

KIND: Final = "connector_failed"


def letter(case: Case, model: Model, number: int, status: str = "pending") -> DeadLetterView | None:
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
        run.data if run is not None else b"",
        run.offered_at if run is not None else 0,
        incident.raised_at,
        status,
    )


def _told(incident: Incident) -> str:
    """What the incident says about the last attempt, without the words before it."""
    return incident.message.removeprefix(f"task {incident.task!r} failed: ")
