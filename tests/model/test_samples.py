"""The samples that ship: valid without a warning, and each runs to its end on the engine."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import re
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest

from knhk_workflow.model.document import strict_yaml
from knhk_workflow.model.parse import document_schema, findings, parse_spec, unsupported
from knhk_workflow.runtime.engine import WorkflowEngine
from knhk_workflow.runtime.state_store import StateStore

SAMPLES = {
    file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
    for file in (importlib.resources.files("knhk_sidecar") / "samples").iterdir()
    if file.name.endswith(".yaml") and file.name != "policy.yaml"
}

Answers = Mapping[str, list[dict[str, object]]]

# What people answer, by task: one answer after the other, the last one again and again.
ANSWERS: Mapping[str, Answers] = {
    "order-approval": {"manager_approval": [{"approved": True}]},
    "claim-parallel-checks": {
        "assess_damage": [{"damage": 7900.0}],
        "decide": [{"decision": "more"}, {"decision": "pay"}],
    },
    "document-review-loop": {
        "draft": [{"text": "first"}],
        "revise": [{"text": "better"}],
        "legal_review": [{"legal": "the warranty is missing"}],
        "technical_review": [{"technical": "ok"}],
        "settle": [{"publish": True}],
    },
    "incident-response": {
        "post_update": [{"more": True}, {"more": True}, {"more": False}],
        "verify": [{"recovered": False}, {"recovered": True}],
    },
    "nested-onboarding": {
        "account": [{"account": "ada"}],
        "badge": [{"badge": "B-12"}],
        "study": [{"passed": False}, {"passed": True}],
    },
}
COMPLETED: Mapping[str, list[str]] = {
    "order-approval": ["manager_approval", "reserve", "send_invoice", "ship"],
    "claim-parallel-checks": [
        "assess_damage",
        "check_policy",
        "decide",
        "decide",
        "investigate",
        "pay",
        "request_documents",
    ],
    "document-review-loop": ["draft", *["legal_review"] * 3, "publish", *["revise"] * 2, "settle"]
    + ["technical_review"] * 3,
    "incident-response": ["mitigate", "mitigate", *["post_update"] * 3, "review", "verify", "verify"],
    "nested-onboarding": ["account", "badge", "laptop", "sign", *["study"] * 4, "welcome"],
}


def case_data(text: str) -> dict[str, object]:
    """The example in the comment at the top."""
    found = re.search(r"^#   (\{.*\})$", text, re.MULTILINE)
    assert found, "a sample shows case data to start with"
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def test_there_are_five() -> None:
    assert sorted(SAMPLES) == sorted(ANSWERS)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_sample_is_valid_and_without_warnings(name: str) -> None:
    document = strict_yaml(SAMPLES[name])
    spec = parse_spec(document)
    assert spec.id == name
    assert findings(spec) == ()
    assert unsupported(spec) == ()
    jsonschema.Draft202012Validator(json.loads(document_schema())).validate(document)
    jsonschema.Draft202012Validator(json.loads(spec.data_schema or b"true")).validate(case_data(SAMPLES[name]))


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_sample_runs_to_its_end(name: str, tmp_path: Path) -> None:
    completed = asyncio.run(run(name, tmp_path))
    assert sorted(completed) == COMPLETED[name]


async def run(name: str, directory: Path) -> list[str]:
    """The tasks that were completed from outside, in order."""
    completed: list[str] = []
    answers = {task: list(reversed(given)) for task, given in ANSWERS[name].items()}
    async with WorkflowEngine(StateStore(str(directory / "db"))) as engine:
        await engine.register_workflow(SAMPLES[name], format="yaml")
        case = await engine.run_case(name, case_data(SAMPLES[name]))
        while case.state == "running":
            assert not case.incidents, case.incidents
            item = next(item for item in case.work if item.task_id != "call_off")
            left = answers.get(item.task_id, [{}])
            await engine.complete_work_item(item.item_id, left.pop() if len(left) > 1 else left[0])
            completed.append(item.task_id)
            case = await engine.get_case(case.case_id)
    assert case.state == "completed"
    return completed
