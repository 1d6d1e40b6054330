"""Large nets: exact by reduction, in well under a second; and what everything that ships is judged."""

from __future__ import annotations

import importlib.resources
import json
import random

import pytest

from knhk_workflow.model.document import strict_yaml
from knhk_workflow.model.net import compile_spec
from knhk_workflow.model.parse import parse_spec
from knhk_workflow.model.verify import Verification, VerifyBudget, verify
from knhk_workflow.patterns.catalogue import PATTERNS
from knhk_workflow.patterns.pattern import Pattern

AVAILABLE = [pattern for pattern in PATTERNS if pattern.available]
NO_WORKFLOW = "policy.yaml"
SAMPLES = [
    file
    for file in (importlib.resources.files("knhk_sidecar") / "samples").iterdir()
    if file.name.endswith(".yaml") and file.name != NO_WORKFLOW
]


def verified(document: object, budget: VerifyBudget | None = None) -> Verification:
    model = compile_spec(parse_spec(document), 1, b"")
    return verify(model.spec, model.nets, budget=budget or VerifyBudget())


class Blocks:
    """A free-choice net of nested blocks: rows, choices, parallel branches, loops."""

    def __init__(self, seed: int, size: int) -> None:
        self.rng = random.Random(seed)
        self.tasks: dict[str, dict[str, str]] = {}
        self.flows: list[dict[str, object]] = []
        first, last = self.block(size)
        self.flow("start", first)
        self.flow(last, "end")

    def document(self) -> dict[str, object]:
        return {"id": "blocks", "tasks": self.tasks, "flows": self.flows}

    def task(self, **body: str) -> str:
        name = f"t{len(self.tasks)}"
        self.tasks[name] = body
        return name

    def flow(self, source: str, target: str, **more: object) -> None:
        self.flows.append({"from": source, "to": target, **more})

    def block(self, size: int) -> tuple[str, str]:
        if size <= 2:
            name = self.task()
            return name, name
        shape = self.rng.choice(("row", "and", "xor", "loop"))
        if shape == "row":
            cut = self.rng.randint(1, size - 1)
            first, second = self.block(cut), self.block(size - cut)
            self.flow(first[1], second[0])
            return first[0], second[1]
        if shape == "loop":
            head, body, tail, after = self.task(), self.block(size - 2), self.task(split="xor"), self.task()
            self.flow(head, body[0])
            self.flow(body[1], tail)
            self.flow(tail, head, when="data.again")
            self.flow(tail, after, default=True)
            return head, after
        split, join = self.task(split=shape), self.task(join=shape)
        parts = self.rng.randint(2, 4)
        for part in range(parts):
            inner = self.block(max(1, (size - 2) // parts))
            guard: dict[str, object] = {} if shape == "and" else {"when": "data.x"} if part else {"default": True}
            self.flow(split, inner[0], **guard)
            self.flow(inner[1], join)
        return split, join


def ladder(tasks: int) -> dict[str, object]:
    """Two rails; each rung leads from the first to an and-join on the second."""
    count = tasks // 2
    flows: list[dict[str, object]] = [
        {"from": "start", "to": "s"},
        {"from": "s", "to": "a0"},
        {"from": "s", "to": "b0"},
    ]
    body: dict[str, dict[str, str]] = {"s": {}, "z": {"join": "and"}}
    for step in range(count):
        body |= {f"a{step}": {}, f"b{step}": {"join": "and"}}
        if step + 1 < count:
            for source, target in (("a", "a"), ("b", "b"), ("a", "b")):
                flows.append({"from": f"{source}{step}", "to": f"{target}{step + 1}"})
    flows += [{"from": f"{rail}{count - 1}", "to": "z"} for rail in "ab"]
    return {"id": "ladder", "tasks": body, "flows": [*flows, {"from": "z", "to": "end"}]}


@pytest.mark.parametrize("seed", range(3))
def test_a_free_choice_net_of_a_thousand_tasks_is_decided_by_reduction(seed: int) -> None:
    blocks = Blocks(seed, 1_700)
    assert len(blocks.tasks) >= 1_000
    assert verified(blocks.document(), VerifyBudget(markings=100, steps=60_000)).verdict == "sound"


def test_one_wrong_join_among_a_thousand_tasks_is_found_with_the_way_there() -> None:
    blocks = Blocks(5, 1_700)
    joins = [name for name, body in blocks.tasks.items() if body.get("join") == "xor"]
    wrong = joins[len(joins) // 2]
    blocks.tasks[wrong]["join"] = "and"
    found = verified(blocks.document())
    assert found.verdict == "unsound"
    problem = next(problem for problem in found.findings if problem.severity == "error")
    assert problem.path == f"tasks.{wrong}.join"
    assert len(problem.trace) > 2


def test_a_ladder_of_eight_hundred_tasks_is_decided_by_reduction() -> None:
    document = ladder(800)
    assert verified(document, VerifyBudget(markings=100, steps=60_000)).verdict == "sound"


@pytest.mark.parametrize("pattern", AVAILABLE, ids=lambda pattern: f"{pattern.number}")
def test_the_net_of_every_pattern_is_sound(pattern: Pattern) -> None:
    found = verified(json.loads(json.dumps(pattern.document)))
    assert found.verdict == "sound", found


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda file: str(file.name))
def test_every_sample_is_sound_without_a_warning(sample: importlib.resources.abc.Traversable) -> None:
    found = verified(strict_yaml(sample.read_text(encoding="utf-8")))
    assert found.verdict == "sound", found
    assert [problem for problem in found.findings if problem.severity != "info"] == []
