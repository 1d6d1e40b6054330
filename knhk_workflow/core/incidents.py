"""Asking a person: an incident stands for what the engine cannot decide, and the case goes on elsewhere."""

from __future__ import annotations

from knhk_workflow.core import events as e
from knhk_workflow.core.cancel import end_case
from knhk_workflow.core.case import Activation
from knhk_workflow.core.step import Step


def raise_incident(
    step: Step, kind: str, net: int, message: str, activation: Activation | None = None, instance: int = 0
) -> None:
    """Record that a person is needed. A spec with `on_incident: fail` fails the case instead of keeping it."""
    case = step.case
    message = step.told(message)
    step.emit(
        e.IncidentRaised(
            case.last_incident + 1,
            kind,
            net,
            message,
            activation.task if activation else "",
            activation.number if activation else 0,
            instance,
        )
    )
    if step.model.spec.on_incident != "fail" or (activation is not None and undoing(step, activation)):
        return
    if step.model.compensates and case.state == "running":
        step.failing = message  # what is under way is not pulled away from under itself: `settle` ends the case
        step.ready = {}
    else:
        end_case(step, "failed", message)


def undoing(step: Step, activation: Activation) -> bool:
    """Whether an activation undoes something, or is part of that."""
    while activation.undoes is None:
        net = step.case.nets[activation.net]
        if net.number == 1:
            return False
        activation = step.case.activations[net.activation]
    return True
