"""What is run: A, split into B and C, joined in D, then E; once completed from outside, once by routing alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

TASKS: Final = ("A", "B", "C", "D", "E")
STEPS: Final = len(TASKS) + 1  # creating and starting the case is the first
STEPWISE: Final = "bench-stepwise"
ROUTING: Final = "bench-routing"
WORKED: Final = "bench-worked"  # as STEPWISE, done by workers over streams
BATCH: Final = 100
DATA: Final = b'{"order":"O-1001","customer":"acme","amount":250}'
OUTPUT: Final = b'{"checked":true}'

_FLOWS: Final = (("start", "A"), ("A", "B"), ("A", "C"), ("B", "D"), ("C", "D"), ("D", "E"), ("E", "end"))


def document(spec_id: str, task: Mapping[str, Sequence[str]]) -> bytes:
    """The five-task net; every task has these settings besides its place in the net."""
    tasks: dict[str, object] = {name: dict(task) for name in TASKS}
    tasks["A"] = {**task, "split": "and"}
    tasks["D"] = {**task, "join": "and"}
    flows = [{"from": origin, "to": target} for origin, target in _FLOWS]
    return json.dumps({"id": spec_id, "tasks": tasks, "flows": flows}).encode()


DOCUMENTS: Final = (
    document(STEPWISE, {"required_roles": ["clerk"]}),
    document(WORKED, {"required_roles": ["clerk"]}),
    document(ROUTING, {}),
)
WAITING: Final = json.dumps(
    {
        "id": "waiting",
        "tasks": {"wait": {"timer": "1m"}},
        "flows": [{"from": "start", "to": "wait"}, {"from": "wait", "to": "end"}],
    }
).encode()
"""A task that waits for its moment, and nothing else."""
