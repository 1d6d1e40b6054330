"""An independent judge of small nets: plays the token game on the document itself, one state at a time.

Shares no code with the product. A state is what is marked, which tasks are at work, and which branches a partial join
has seen; starting and completing work are moves of their own. Everything is looked up by name and nothing is made
smaller, so only small nets come to an end: `judge` answers None when there are more than STATES_MAX states.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

STATES_MAX = 400
TOKENS_MAX = 4  # of one place; more is taken for a net without bound

Bag = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Toy:
    """A task of a small net."""

    name: str
    join: str = "xor"  # and, xor, or, partial
    split: str = "and"  # and, xor, or
    need: int = 1
    mode: str = "structured"
    cancels: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    mutex: str = ""


@dataclass(frozen=True)
class ToyNet:
    """A small net. Flows go between tasks, or between a task and a place."""

    tasks: tuple[Toy, ...]
    flows: tuple[tuple[str, str], ...]
    places: tuple[str, ...] = ()
    explicit: bool = False

    def document(self) -> dict[str, object]:
        """The net as a workflow document."""
        flows: list[dict[str, object]] = []
        kinds = {task.name: task.split for task in self.tasks}
        last = dict(self.flows)
        several = {s for s, _ in self.flows if sum(1 for other, _ in self.flows if other == s) > 1}
        for source, target in self.flows:
            flow: dict[str, object] = {"from": source, "to": target}
            if source in several and kinds.get(source) in ("xor", "or"):
                if kinds[source] == "xor" and last[source] == target:
                    flow["default"] = True
                else:
                    flow["when"] = "data.x"
            flows.append(flow)
        tasks: dict[str, object] = {}
        for task in self.tasks:
            body: dict[str, object] = {"join": task.join, "split": task.split}
            if task.join == "partial":
                body["join"] = {"partial": {"need": task.need, "mode": task.mode}}
            extras = {"cancels": list(task.cancels), "reads": list(task.reads), "mutex": task.mutex}
            body.update({key: value for key, value in extras.items() if value})
            tasks[task.name] = body
        return {
            "id": "toy",
            "tasks": tasks,
            "conditions": list(self.places),
            "flows": flows,
            "termination": "explicit" if self.explicit else "implicit",
        }


@dataclass(frozen=True, order=True)
class State:
    """Tokens by place, work by task, branches seen by partial join."""

    tokens: Bag
    work: Bag = ()
    seen: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass
class Judgement:
    """What is true of a net. `fewest` is the least number of completed tasks before it is stuck."""

    sound: bool
    dead: set[str]
    fewest: int | None
    doomed: set[State] = field(default_factory=set)
    stuck: set[State] = field(default_factory=set)
    several: set[str] = field(default_factory=set)


class TooLarge(Exception):
    """More states than the judge looks at."""


class Game:
    """The moves of one net."""

    def __init__(self, net: ToyNet) -> None:
        self.net = net
        self.by_name = {task.name: task for task in net.tasks}
        self.into: dict[str, list[str]] = {task.name: [] for task in net.tasks}
        self.out_of: dict[str, list[str]] = {task.name: [] for task in net.tasks}
        for source, target in net.flows:
            place = f"{source}->{target}" if source in self.into and target in self.into else ""
            if target in self.into:
                self.into[target].append(place or source)
            if source in self.into:
                self.out_of[source].append(place or target)
        for inputs in self.into.values():
            inputs.sort()
        self.taken = {place for inputs in self.into.values() for place in inputs}
        self.verdicts: dict[tuple[str, State], bool] = {}

    @property
    def first(self) -> State:
        return State((("start", 1),))

    def over(self, state: State) -> bool:
        """Whether the net has completed."""
        tokens = dict(state.tokens)
        if self.net.explicit and "start" in self.taken:
            return "end" in tokens
        return not state.work and not (tokens.keys() & self.taken)

    def moves(self, state: State) -> list[tuple[str, str, State]]:
        """(what, task, state after): `start` and `complete`."""
        if self.over(state):
            return []
        at_once = [
            ("start", name, after) for name in self.by_name if self.eager(name) for after in self.starts(state, name)
        ]
        if at_once:
            return at_once
        found = [("start", name, after) for name in self.by_name for after in self.starts(state, name)]
        return found + [("complete", name, after) for name, _ in state.work for after in self.completions(state, name)]

    def eager(self, name: str) -> bool:
        """A partial join takes its tokens by itself, where nobody else looks at them and nothing else holds it back."""
        task = self.by_name[name]
        looked_at = {place for other in self.net.tasks for place in other.reads}
        for other, inputs in self.into.items():
            if other != name:
                looked_at.update(inputs)
        return task.join == "partial" and not (task.reads or task.mutex or looked_at & set(self.into[name]))

    def starts(self, state: State, name: str, simple: bool = False) -> Iterator[State]:
        """Ways to start a task; `simple` reads an OR-join as an XOR-join."""
        task, tokens = self.by_name[name], dict(state.tokens)
        inputs = self.into[name]
        marked = [place for place in inputs if tokens.get(place)]
        if any(not tokens.get(place) for place in task.reads):
            return
        if task.mutex and any(self.by_name[other].mutex == task.mutex for other, _ in state.work):
            return
        if not marked:
            return
        if task.join == "and":
            if len(marked) == len(inputs):
                yield self.begin(state, name, inputs)
        elif task.join == "xor" or (task.join == "or" and simple):
            for place in marked:
                yield self.begin(state, name, [place])
        elif task.join == "or":
            if self.or_join(state, name):
                yield self.begin(state, name, marked)
        else:
            if name in dict(state.seen):
                return
            for chosen in itertools.combinations(marked, task.need):
                yield self.begin(state, name, list(chosen))

    def begin(self, state: State, name: str, places: list[str]) -> State:
        task = self.by_name[name]
        tokens, work, seen = dict(state.tokens), dict(state.work), dict(state.seen)
        for place in places:
            tokens[place] -= 1
        work[name] = work.get(name, 0) + 1
        if task.join == "partial" and task.mode != "cancelling":
            seen[name] = tuple(sorted(places))
        if task.join == "partial" and task.mode == "cancelling":
            for place in self.into[name]:
                tokens.pop(place, None)
            mine = work[name]
            for gone in task.cancels:
                self.remove(gone, tokens, work, seen, name)
            work[name] = 1 if name in task.cancels else mine
        return self.settled(tokens, work, seen)

    def completions(self, state: State, name: str) -> Iterator[State]:
        task = self.by_name[name]
        places = self.out_of[name]
        if task.split == "and" or len(places) < 2:
            outcomes: list[tuple[str, ...]] = [tuple(places)]
        elif task.split == "xor":
            outcomes = [(place,) for place in places]
        else:
            outcomes = [each for size in range(1, len(places) + 1) for each in itertools.combinations(places, size)]
        for outcome in outcomes:
            tokens, work, seen = dict(state.tokens), dict(state.work), dict(state.seen)
            work[name] -= 1
            if task.join != "partial" or task.mode != "cancelling":  # that one has cancelled when it fired
                for gone in task.cancels:
                    self.remove(gone, tokens, work, seen, name)
            for place in outcome:
                tokens[place] = tokens.get(place, 0) + 1
            yield self.settled(tokens, work, seen)

    def remove(
        self, gone: str, tokens: dict[str, int], work: dict[str, int], seen: dict[str, tuple[str, ...]], by: str
    ) -> None:
        tokens.pop(gone, None)
        if gone in self.by_name:
            work.pop(gone, None)
            if gone != by:
                seen.pop(gone, None)
            for place in self.into[gone]:
                if "->" in place:
                    tokens.pop(place, None)

    def settled(self, tokens: dict[str, int], work: dict[str, int], seen: dict[str, tuple[str, ...]]) -> State:
        """Partial joins that have fired absorb the branches that come later, and begin anew when all have come."""
        moved = True
        while moved:
            moved = False
            for name in sorted(seen):
                inputs = self.into[name]
                late = [place for place in inputs if place not in seen[name] and tokens.get(place)]
                for place in late:
                    tokens[place] -= 1
                seen[name] = tuple(sorted((*seen[name], *late)))
                if len(seen[name]) == len(inputs):
                    del seen[name]
                    moved = True
        if any(count > TOKENS_MAX for place, count in tokens.items() if place in self.taken):
            raise TooLarge
        kept = {place: min(count, 1) if place not in self.taken else count for place, count in tokens.items()}
        return State(
            tuple(sorted((place, count) for place, count in kept.items() if count)),
            tuple(sorted((task, count) for task, count in work.items() if count)),
            tuple(sorted(seen.items())),
        )

    def or_join(self, state: State, name: str) -> bool:
        """No state can be reached, without this join firing, that has its marked inputs still and one more."""
        key = (name, state)
        if key not in self.verdicts:
            self.verdicts[key] = self.no_more(state, name)
        return self.verdicts[key]

    def no_more(self, state: State, name: str) -> bool:
        tokens = dict(state.tokens)
        marked = {place for place in self.into[name] if tokens.get(place)}
        reached, pending = {state}, [state]
        while pending:
            now = pending.pop()
            if self.over(now) and self.net.explicit:
                continue  # the end has removed everything else
            there = {place for place in self.into[name] if dict(now.tokens).get(place)}
            if marked < there:
                return False
            for other in self.by_name:
                after = [] if other == name else list(self.starts(now, other, simple=True))
                if other in dict(now.work):
                    after.extend(self.completions(now, other))
                for each in after:
                    if each not in reached:
                        reached.add(each)
                        pending.append(each)
                        if len(reached) > STATES_MAX:
                            raise TooLarge
        return True

    def at_rest(self, states: set[State]) -> set[State]:
        """These states and those that starting work leads to."""
        found, pending = set(states), list(states)
        while pending:
            for what, _, after in self.moves(pending.pop()):
                if what == "start" and after not in found:
                    found.add(after)
                    pending.append(after)
        return found


def judge(net: ToyNet) -> Judgement | None:
    """What is true of `net`; None when it is too large for a judgement."""
    game = Game(net)
    try:
        return _judge(game)
    except TooLarge:
        return None


def _judge(game: Game) -> Judgement:
    costs: dict[State, int] = {game.first: 0}
    queue: list[tuple[int, State]] = [(0, game.first)]
    before: dict[State, list[State]] = {}
    started: set[str] = set()
    done: set[State] = set()
    over: list[State] = []
    stuck: set[State] = set()
    several: set[str] = set()
    while queue:
        cost, state = heapq.heappop(queue)
        if state in done:
            continue
        done.add(state)
        if len(done) > STATES_MAX:
            raise TooLarge
        if game.over(state):
            over.append(state)
            continue
        several.update(place for place, count in state.tokens if count > 1)
        moves = game.moves(state)
        if not moves:
            stuck.add(state)
        for what, name, after in moves:
            if what == "start":
                started.add(name)
            before.setdefault(after, []).append(state)
            price = cost + (what == "complete")
            if price < costs.get(after, 1 << 30):
                costs[after] = price
                heapq.heappush(queue, (price, after))
    hopeful, pending = set(over), list(over)
    while pending:
        for source in before.get(pending.pop(), ()):
            if source not in hopeful:
                hopeful.add(source)
                pending.append(source)
    doomed = done - hopeful
    connected = _connected(game.net)
    dead = connected - started
    fewest = min((costs[state] for state in stuck), default=None)
    return Judgement(not doomed and not dead, dead, fewest, doomed, stuck, several)


def _connected(net: ToyNet) -> set[str]:
    found, pending = set(), ["start"]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(target for source, target in net.flows if source == node)
    return found & {task.name for task in net.tasks}
