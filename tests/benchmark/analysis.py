"""What is found out about nets before and while they run: verification, and the verdicts of or-joins.

Both grow with the net, so each is measured at several sizes. Verdicts are measured without what a join remembers: each
question is answered as if it had never been asked. The markings are those of cases on their way to the join.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from knhk_workflow.core.or_join import OrJoin, compile_or_joins
from knhk_workflow.model.net import compile_spec
from knhk_workflow.model.parse import parse_spec
from knhk_workflow.model.verify import verify
from tests.benchmark.processes import serve_questions
from tests.benchmark.samples import Estimate, estimate, quantile

SIZES: Final = (20, 50, 200, 800)
BRANCHES: Final = 4
ROUNDS: Final = 3
SEED: Final = 7

Flow = dict[str, object]


class Analyse(msgspec.Struct):
    """Verify a net of so many tasks so often, and ask for so many verdicts at each of `sizes`."""

    tasks: int
    times: int
    verdicts: int
    sizes: tuple[int, ...] = SIZES


class Verdicts(msgspec.Struct):
    """The processor time of one verdict, microseconds, in a net of `tasks` tasks where `size` were asked for."""

    shape: str
    size: int
    tasks: int
    p50_us: Estimate
    p99_us: Estimate


class Analysed(msgspec.Struct):
    """What came of it. `seconds` are processor time."""

    tasks: int
    verdict: str
    seconds: Estimate
    verdicts: list[Verdicts]


class Draft:
    """A document in the making."""

    def __init__(self) -> None:
        self.tasks: dict[str, Flow] = {}
        self.flows: list[Flow] = []

    def task(self, **body: object) -> str:
        """A new task's name."""
        name = f"t{len(self.tasks)}"
        self.tasks[name] = body
        return name

    def flow(self, source: str, target: str, **more: object) -> None:
        """One flow."""
        self.flows.append({"from": source, "to": target, **more})

    def chain(self, length: int) -> list[str]:
        """Tasks one after the other."""
        names = [self.task() for _ in range(length)]
        for source, target in pairwise(names):
            self.flow(source, target)
        return names

    def document(self) -> dict[str, object]:
        """As it is registered."""
        return {"id": "drafted", "tasks": self.tasks, "flows": self.flows}


def free_choice(size: int, seed: int = SEED) -> Draft:
    """Rows, choices, parallel branches and loops in one another, at least `size` tasks."""
    draft, rng = Draft(), random.Random(seed)

    def block(left: int) -> tuple[str, str]:
        if left <= 2:
            only = draft.task()
            return only, only
        shape = rng.choice(("row", "and", "xor", "loop"))
        if shape == "row":
            cut = rng.randint(1, left - 1)
            (first, end), (begin, last) = block(cut), block(left - cut)
            draft.flow(end, begin)
            return first, last
        if shape == "loop":
            head, (first, last), tail, after = draft.task(), block(left - 2), draft.task(split="xor"), draft.task()
            draft.flow(head, first)
            draft.flow(last, tail)
            draft.flow(tail, head, when="data.again")
            draft.flow(tail, after, default=True)
            return head, after
        split, join = draft.task(split=shape), draft.task(join=shape)
        parts = rng.randint(2, 4)
        for part in range(parts):
            first, last = block(max(1, (left - 2) // parts))
            draft.flow(split, first, **({} if shape == "and" else {"when": "data.x"} if part else {"default": True}))
            draft.flow(last, join)
        return split, join

    first, last = block(size)
    draft.flow("start", first)
    while len(draft.tasks) < size:
        begin, end = block(size - len(draft.tasks))
        draft.flow(last, begin)
        last = end
    draft.flow(last, "end")
    return draft


class Shape(NamedTuple):
    """A net with an or-join, and the markings in which it is asked."""

    draft: Draft
    join: str
    marking: Callable[[random.Random], Mapping[str, int]]


def rounds_of_blocks(size: int) -> Shape:
    """Or-splits with their or-joins in a row, the whole in a loop; in each the last branch cancels the first."""
    draft = Draft()
    blocks = max(1, size // 50)
    length = max(1, -(-((size - 2) // blocks - 2) // BRANCHES))
    head = draft.task(join="xor")
    draft.flow("start", head)
    before = head
    ways: list[list[str]] = []
    join = ""
    for _ in range(blocks):
        split, join = draft.task(split="or"), draft.task(join="or")
        draft.flow(before, split)
        branches = [draft.chain(length) for _ in range(BRANCHES)]
        draft.tasks[branches[-1][-1]]["cancels"] = branches[0]
        ways = []
        for number, names in enumerate(branches):
            draft.flow(split, names[0], **({"when": f"data.b{number}"} if number else {"default": True}))
            draft.flow(names[-1], join)
            places = [split, *names, join]
            ways.append([f"{source}->{target}" for source, target in pairwise(places)])
        before = join
    tail = draft.task(split="xor")
    draft.flow(before, tail)
    draft.flow(tail, head, when="data.again")
    draft.flow(tail, "end", default=True)

    def marking(rng: random.Random) -> Mapping[str, int]:
        """A token has come through some branch but not all; in the others it is on its way or never came."""
        arrived = rng.randrange(BRANCHES)
        found = {ways[arrived][-1]: 1}
        for number, places in enumerate(ways):
            if number != arrived and rng.random() < 0.4:
                found[rng.choice(places)] = 1
        return found

    return Shape(draft, join, marking)


def ladder(size: int) -> Shape:
    """Two rails; each rung leads from the first to an and-join on the second; both rails lead to the or-join."""
    draft = Draft()
    count = max(2, (size - 2) // 2)
    split = draft.task(split="and")
    draft.flow("start", split)
    join = draft.task(join="or")
    first = draft.chain(count)
    second = [draft.task(**({"join": "and"} if step else {})) for step in range(count)]
    for step in range(1, count):
        draft.flow(second[step - 1], second[step])
        draft.flow(first[step - 1], second[step])
        draft.tasks[first[step - 1]]["split"] = "and"
    for rail in (first, second):
        draft.flow(split, rail[0])
        draft.flow(rail[-1], join)
    draft.flow(join, "end")

    def marking(rng: random.Random) -> Mapping[str, int]:
        """The first rail is through, the second somewhere: the rungs before it hold what it will need."""
        at = rng.randrange(count)
        found = {f"{first[step - 1]}->{second[step]}": 1 for step in range(max(at, 1), count)}
        return {f"{first[-1]}->{join}": 1, f"{second[at - 1] if at else split}->{second[at]}": 1, **found}

    return Shape(draft, join, marking)


SHAPES: Final = {"or-blocks that cancel, in a loop": rounds_of_blocks, "ladder of and-joins": ladder}


class Analysis:
    """Answers in a process of its own."""

    async def answer(self, asked: Analyse) -> Analysed:
        """Measures."""
        draft = free_choice(asked.tasks)
        model = compile_spec(parse_spec(draft.document()), 1, b"")
        times: list[float] = []
        verdict = ""
        for _ in range(asked.times):
            gc.collect()
            began = time.process_time()
            verdict = verify(model.spec, model.nets).verdict
            times.append(time.process_time() - began)
        found = [
            _asked(name, size, shape(size), asked.verdicts) for name, shape in SHAPES.items() for size in asked.sizes
        ]
        return Analysed(len(draft.tasks), verdict, estimate(times), found)


def _asked(name: str, size: int, shape: Shape, count: int) -> Verdicts:
    """The times of so many verdicts on different markings."""
    model = compile_spec(parse_spec(shape.draft.document()), 1, b"")
    join = compile_or_joins(model.root)[shape.join]
    join.prepare()
    rng = random.Random(SEED)
    p50: list[float] = []
    p99: list[float] = []
    gc.collect()
    for _ in range(ROUNDS):
        took = [_verdict_us(join, shape.marking(rng)) for _ in range(max(1, count // ROUNDS))]
        p50.append(quantile(took, 0.5))
        p99.append(quantile(took, 0.99))
    return Verdicts(name, size, len(shape.draft.tasks), estimate(p50), estimate(p99))


def _verdict_us(join: OrJoin, marking: Mapping[str, int]) -> float:
    assert join._analysis is not None
    join._analysis._memo.clear()
    began = time.process_time()
    join.verdict(marking, {})
    return (time.process_time() - began) * 1e6


if __name__ == "__main__":
    asyncio.run(serve_questions(Analyse, Analysis().answer))
