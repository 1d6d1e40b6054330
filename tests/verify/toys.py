"""Random small nets: wild ones, and blocks that are sound until a mutation breaks them."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.verify.oracle import Toy, ToyNet

KINDS = ("and", "xor", "or")


def random_net(seed: int) -> ToyNet:
    """The net of a seed, always the same."""
    rng = random.Random(seed)
    return _wild(rng) if rng.random() < 0.35 else _broken(rng, _Blocks(rng).net())


def _wild(rng: random.Random) -> ToyNet:
    names = [f"t{number}" for number in range(rng.randint(2, 6))]
    places = [f"p{number}" for number in range(rng.randint(0, 2))]
    flows = {("start", names[0])}
    for index, name in enumerate(names):
        later = [*names[index + 1 :], "end"]
        flows.add((name, rng.choice(later)))
        if index:
            flows.add((rng.choice(names[:index]), name))
        if rng.random() < 0.5:
            flows.add((name, rng.choice([*later, *places])))
        if rng.random() < 0.25:
            flows.add((name, rng.choice(names)))
    for place in places:
        if any(target == place for _, target in flows):
            flows.add((place, rng.choice(names)))
            if rng.random() < 0.4:
                flows.add((place, rng.choice(names)))
    tasks = tuple(_join(rng, Toy(name, rng.choice(KINDS), rng.choice(KINDS)), flows) for name in names)
    used = tuple(place for place in places if any(place in flow for flow in flows))
    net = ToyNet(tasks, tuple(sorted(flows)), used, rng.random() < 0.4)
    return _extras(rng, net, 0.3)


def _join(rng: random.Random, task: Toy, flows: set[tuple[str, str]]) -> Toy:
    incoming = sum(1 for _, target in flows if target == task.name)
    if incoming > 1 and rng.random() < 0.2:
        mode = rng.choice(("structured", "blocking", "cancelling"))
        return replace(task, join="partial", need=rng.randint(1, incoming), mode=mode)
    return task


class _Blocks:
    """Nested blocks with matching splits and joins, and loops."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.tasks: list[Toy] = []
        self.flows: list[tuple[str, str]] = []

    def net(self) -> ToyNet:
        first, last = self.block(self.rng.randint(2, 7))
        self.flows += [("start", first), (last, "end")]
        return ToyNet(tuple(self.tasks), tuple(sorted(self.flows)), (), self.rng.random() < 0.4)

    def task(self, join: str = "xor", split: str = "and") -> str:
        name = f"t{len(self.tasks)}"
        toy = Toy(name, join, split)
        if join == "partial":
            mode = self.rng.choice(("structured", "blocking"))
            toy = replace(toy, need=self.rng.randint(1, 2), mode=mode)
        self.tasks.append(toy)
        return name

    def block(self, size: int) -> tuple[str, str]:
        if size < 3:
            name = self.task()
            return name, name
        shape = self.rng.choice(("row", "and", "xor", "or", "partial", "loop"))
        if shape == "row":
            first, second = self.block(size // 2), self.block(size - size // 2)
            self.flows.append((first[1], second[0]))
            return first[0], second[1]
        if shape == "loop":
            head, body, tail = self.task(), self.block(size - 2), self.task(split="xor")
            self.flows += [(head, body[0]), (body[1], tail), (tail, head)]
            after = self.task()
            self.flows.append((tail, after))
            return head, after
        split = self.task(split="and" if shape == "partial" else shape)
        join = self.task(join=shape)
        for _ in range(2):
            inner = self.block(max(1, (size - 2) // 2))
            self.flows += [(split, inner[0]), (inner[1], join)]
        return split, join


def _broken(rng: random.Random, net: ToyNet) -> ToyNet:
    """Up to two changes to a net of blocks."""
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        index = rng.randrange(len(net.tasks))
        tasks = list(net.tasks)
        change = rng.random()
        if change < 0.4 and tasks[index].join != "partial":
            tasks[index] = replace(tasks[index], join=rng.choice(KINDS))
        elif change < 0.7:
            tasks[index] = replace(tasks[index], split=rng.choice(KINDS))
        else:
            flow = (tasks[index].name, rng.choice([task.name for task in tasks] + ["end"]))
            if flow not in net.flows:
                net = replace(net, flows=tuple(sorted((*net.flows, flow))))
        net = replace(net, tasks=tuple(tasks))
    return _extras(rng, net, 0.15)


def _extras(rng: random.Random, net: ToyNet, share: float) -> ToyNet:
    """Cancellation, milestones and mutexes here and there."""
    names = [task.name for task in net.tasks]
    inner = [f"{source}->{target}" for source, target in net.flows if source in names and target in names]
    tasks = []
    for task in net.tasks:
        if rng.random() < share or (task.join == "partial" and task.mode == "cancelling"):
            found = rng.sample([*names, *inner, *net.places], rng.randint(1, min(3, len(names))))
            task = replace(task, cancels=tuple(dict.fromkeys(found)))
        if rng.random() < share / 6 and (inner or net.places):
            task = replace(task, reads=(rng.choice([*inner, *net.places]),))
        if rng.random() < share / 3:
            task = replace(task, mutex="m")
        tasks.append(task)
    return replace(net, tasks=tuple(tasks))
