"""General OR-joins (WCP-38): against an oracle that walks every marking, and the cases that others get wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.or_join import OrJoin, Verdict, Witness, compile_or_joins
from knhk_workflow.core.upstream import Budget, Effort
from knhk_workflow.model.net import compile_net
from knhk_workflow.model.spec import Condition, Flow, Instances, Join, Net, Split, Task, Termination, Trigger
from tests.conftest import Budget as RunBudget
from tests.core.cases import WORK, Document, Played, flow, path
from tests.core.or_join_oracle import Oracle, State, has_cycle, random_net, random_state

FIRE, WAIT, UNDECIDED = Verdict.FIRE, Verdict.WAIT, Verdict.UNDECIDED
OR, AND = Join("or"), Join("and")
XOR_SPLIT, OR_SPLIT = Split("xor"), Split("or")
STEPS_PER_NET = 10  # of the run's budget; four states of one net, each walked through twice
STATES_MAX = 1_500  # markings that the oracle walks through before it gives up
ASKED_MAX = 15  # markings of one net that its joins are asked about, one after the other
TOKENS_MAX = 4  # in one place; more is taken for a net without bound


def net(*chains: str, termination: Termination = "implicit", section: tuple[str, ...] = (), **tasks: Task) -> Net:
    """A net from chains of flows, `start > a > j`. A name in brackets, `(p)`, is a condition; tasks that are not given
    are plain."""
    flows: dict[tuple[str, str], None] = {}
    places: set[str] = set()
    for chain in chains:
        names = [name.strip() for name in chain.split(">")]
        places |= {name.strip("()") for name in names if name.startswith("(")}
        names = [name.strip("()") for name in names]
        flows.update(dict.fromkeys(pairwise(names)))
    ids = sorted({name for flow in flows for name in flow} - places - {"start", "end"})
    return Net(
        "",
        tuple(msgspec.structs.replace(tasks[name], id=name) if name in tasks else Task(name) for name in ids),
        tuple(Condition(place) for place in sorted(places)),
        tuple(Flow(source, target) for source, target in flows),
        termination,
        (("inside", section),) if section else (),
    )


def task(
    join: Join = Join(),  # noqa: B008 (immutable)
    split: Split = Split(),  # noqa: B008 (immutable)
    *,
    cancels: tuple[str, ...] = (),
    reads: tuple[str, ...] = (),
    mutex: str | None = None,
    trigger: Trigger | None = None,
    instances: Instances | None = None,
    sub_net: str | None = None,
) -> Task:
    return Task(
        "",
        join=join,
        split=split,
        cancels=cancels,
        reads=reads,
        mutex=mutex,
        trigger=trigger,
        instances=instances,
        net=sub_net,
    )


def tokens(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """`a->j*2 start !b`: two tokens in a->j, one in start, and b at work."""
    marking: dict[str, int] = {}
    busy: dict[str, int] = {}
    for word in text.split():
        name, _, count = word.partition("*")
        (busy if name.startswith("!") else marking)[name.lstrip("!")] = int(count or 1)
    return marking, busy


@dataclass(frozen=True)
class Hard:
    """One net, and what its join `j` (or another) does in several markings."""

    id: str
    net: Net
    verdicts: Mapping[str, Verdict]
    join: str = "j"
    witness: Mapping[str, Witness] = field(default_factory=dict)


HARD = (
    Hard(
        "two or-joins in one cycle wait for each other",
        net("start > s > j > k > j", "s > k > end", j=task(OR), k=task(OR, XOR_SPLIT)),
        {"s->j s->k": WAIT, "s->j": FIRE, "s->j !k": WAIT, "s->j !j": WAIT},
        witness={"s->j s->k": Witness("s->k", False, "k->j", ("k",))},
    ),
    Hard(
        "the other or-join of the cycle waits as well",
        net("start > s > j > k > j", "s > k > end", j=task(OR), k=task(OR, XOR_SPLIT)),
        {"s->j s->k": WAIT, "s->k": FIRE},
        "k",
    ),
    Hard(
        "an or-join feeds its own input through a loop",
        net("start > a > j > l > j", "j > end", j=task(OR, XOR_SPLIT)),
        {"a->j": FIRE, "l->j": FIRE, "a->j !l": WAIT, "a->j j->l": WAIT, "a->j !j": WAIT, "l->j !a": WAIT},
        witness={"a->j !j": Witness("j", True, "l->j", ("j", "l"))},
    ),
    Hard(
        "a region empties the waiting inputs",
        net("start > s > a > j > end", "s > b > j", "s > c > end", j=task(OR), c=task(cancels=("a->j", "b"))),
        {"a->j !b !c": WAIT, "a->j !c": FIRE, "b->j !a": WAIT, "!a": WAIT, "": WAIT},
    ),
    Hard(
        "what could still come removes what is there",
        net("start > s > a > j > end", "s > b > j", j=task(OR), b=task(cancels=("a->j",))),
        {"a->j !b": FIRE, "a->j s->b": FIRE, "a->j*2 !b": FIRE, "b->j !a": WAIT},
    ),
    Hard(
        "a region kills the branch that is waited for",
        net("start > s > a > j > end", "s > b > j", "s > c > end", j=task(OR), c=task(cancels=("b",))),
        {"a->j s->b !c": WAIT, "a->j !b": WAIT, "a->j !c": FIRE},
    ),
    Hard(
        "a token before an and-join that can never fire",
        net("start > s > a > j > end", "s > b > d > j", "s > c > d", j=task(OR), d=task(AND)),
        {"a->j b->d": FIRE, "a->j b->d*5": FIRE, "a->j b->d !c": WAIT, "a->j c->d b->d": WAIT, "a->j !b": FIRE},
    ),
    Hard(
        "two tokens in one input",
        net("start > s > a > j > end", "s > b > j", j=task(OR)),
        {"a->j*2": FIRE, "a->j*2 !b": WAIT, "a->j*2 b->j": FIRE},
    ),
    Hard(
        "a surplus token can leave one input for another, the only one cannot",
        net("start > a > (p) > j > end", "(p) > r > j", j=task(OR)),
        {"p": FIRE, "p*2": WAIT, "p !r": WAIT, "r->j p": FIRE},
        witness={"p*2": Witness("p", False, "r->j", ("r",))},
    ),
    Hard(
        "multiple instances at work upstream",
        net("start > s > a > j > end", "s > b > j", j=task(OR), b=task(instances=Instances(min=3))),
        {"a->j !b": WAIT, "a->j !b*2": WAIT, "a->j": FIRE},
    ),
    Hard(
        "a sub-net at work upstream",
        net("start > s > a > j > end", "s > b > j", j=task(OR), b=task(sub_net="inner")),
        {"a->j !b": WAIT, "a->j s->b": WAIT, "a->j": FIRE},
    ),
    Hard(
        "an or-join directly before an or-join: the second",
        net("start > s > a > k > j > end", "s > b > k", "s > c > j", j=task(OR), k=task(OR), s=task(split=OR_SPLIT)),
        {"a->k c->j": WAIT, "c->j": FIRE, "k->j !c": WAIT, "k->j a->k": FIRE, "c->j !k": WAIT},
    ),
    Hard(
        "an or-join directly before an or-join: the first",
        net("start > s > a > k > j > end", "s > b > k", "s > c > j", j=task(OR), k=task(OR), s=task(split=OR_SPLIT)),
        {"a->k c->j": FIRE, "a->k !b c->j": WAIT, "a->k !c": FIRE},
        "k",
    ),
    Hard(
        "a structured block that a region makes unstructured",
        net(
            "start > s > a > b > j > end",
            "s > c > d > j",
            "s > e > j",
            s=task(split=OR_SPLIT),
            j=task(OR),
            e=task(cancels=("a->b", "b", "c")),
        ),
        {
            "b->j !c": WAIT,
            "e->j": FIRE,
            "b->j e->j c->d": WAIT,
            "e->j d->j": FIRE,
            "b->j !e !c": WAIT,
            "b->j c->d": WAIT,
        },
    ),
    Hard(
        "a deferred choice upstream",
        net("start > s > a > j > end", "s > (p) > x > j", "(p) > y > end", j=task(OR)),
        {"a->j p": WAIT, "a->j !y": FIRE, "a->j !x": WAIT, "a->j y": FIRE},
        witness={"a->j p": Witness("p", False, "x->j", ("x",))},
    ),
    Hard(
        "a milestone upstream",
        net("start > s > a > j > end", "s > b > j", "s > m > (r) > n > end", j=task(OR), b=task(reads=("r",))),
        {"a->j s->b": FIRE, "a->j s->b r": WAIT, "a->j s->b !m": WAIT, "a->j s->b !n": FIRE, "a->j !b": WAIT},
    ),
    Hard(
        "a milestone whose token is the one that it is wanted for",
        net(
            "start > s > a > j > end",
            "s > (p) > m > (r) > z > end",
            "(p) > n > b > j",
            j=task(OR),
            b=task(reads=("r",)),
        ),
        {"a->j p": FIRE, "a->j p*2": WAIT, "a->j p r": WAIT, "a->j n->b": FIRE, "a->j n->b p": WAIT},
    ),
    Hard(
        "a mutex upstream is given back",
        net("start > s > a > j > end", "s > b > j", "s > c > end", j=task(OR), b=task(mutex="m"), c=task(mutex="m")),
        {"a->j s->b !c": WAIT, "a->j s->b": WAIT, "a->j !c": FIRE},
    ),
    Hard(
        "a section upstream whose holder is stuck inside",
        net(
            "start > s > a > j > end",
            "s > b > c > end",
            "s > x > c",
            "s > d > j",
            j=task(OR),
            c=task(AND),
            section=("b", "c", "d"),
        ),
        {
            "a->j s->d": WAIT,
            "a->j s->d b->c": FIRE,
            "a->j s->d b->c !x": WAIT,
            "a->j s->d !b": FIRE,
            "a->j s->d !b !x": WAIT,
        },
    ),
    Hard(
        "a task that waits for a signal upstream",
        net("start > s > a > j > end", "s > b > j", j=task(OR), b=task(trigger=Trigger("go", "transient"))),
        {"a->j s->b": WAIT, "a->j": FIRE},
    ),
    Hard(
        "a signal that would start a thread of its own is not waited for",
        net("start > a > j > end", "b > j", j=task(OR), b=task(trigger=Trigger("go"))),
        {"a->j": FIRE, "a->j !b": WAIT},
    ),
    Hard(
        "work that is suspended or has failed can still complete, until it is cancelled",
        net("start > s > a > j > end", "s > b > j", j=task(OR)),
        {"a->j !b": WAIT, "a->j": FIRE},  # the state of an item makes no difference: its activation is at work
    ),
    Hard(
        "the end of an explicit net is the end of everything",
        net("start > s > a > j > (q)", "s > b > c > j", "b > end", j=task(OR), termination="explicit"),
        {"a->j !b": FIRE, "a->j b->c": WAIT},
    ),
    Hard(
        "the end is one choice of an explicit net",
        net(
            "start > s > a > j > (q)",
            "s > b > j",
            "b > end",
            j=task(OR),
            b=task(split=OR_SPLIT),
            termination="explicit",
        ),
        {"a->j !b": WAIT},
    ),
    Hard(
        "threads that a merge cannot get enough of",
        net(
            "start > s > a > j > end",
            "s > b > m > j",
            j=task(OR),
            b=task(split=Split("threads", 2)),
            m=task(Join("merge", count=3)),
        ),
        {"a->j !b": FIRE, "a->j s->b b->m": WAIT, "a->j !b*2": WAIT, "a->j b->m*2": FIRE},
    ),
)


def joins_of(spec: Net) -> Mapping[str, OrJoin]:
    return compile_or_joins(compile_net(spec))


@pytest.mark.parametrize("hard", HARD, ids=lambda hard: hard.id)
def test_hard_case(hard: Hard) -> None:
    join = joins_of(hard.net)[hard.join]
    oracle = Oracle(hard.net)
    for text, verdict in hard.verdicts.items():
        marking, busy = tokens(text)
        marking = {name: count for name, count in marking.items() if name in oracle.places}
        assert join.verdict(marking, busy) is verdict, text
        fires = oracle.fires(hard.join, State.of(marking, busy), states_max=STATES_MAX, tokens_max=9)
        assert fires is (verdict is FIRE), f"the oracle does not agree: {text}"
    for text, witness in hard.witness.items():
        assert join.witness(*tokens(text)) == witness, text


@pytest.mark.parametrize("mode", ["structured", "blocking"])
def test_a_discriminator_that_has_fired_swallows_the_rest(mode: str) -> None:
    first = Join("partial", need=1, mode="structured" if mode == "structured" else "blocking")
    join = joins_of(net("start > s > a > j > end", "s > b > d > j", "s > c > d", j=task(OR), d=task(first)))["j"]
    marking, busy = tokens("a->j !c")
    assert join.verdict(marking, busy) is WAIT
    assert join.verdict(marking, busy, {"d": ("b->d",)}) is FIRE
    assert join.verdict({"a->j": 1, "s->b": 1}, busy, {"d": ("b->d",)}) is WAIT  # c ends the round, b begins the next


def test_without_any_token_there_is_nothing_to_wait_for() -> None:
    join = joins_of(net("start > s > a > j > end", "s > b > j", j=task(OR)))["j"]
    assert join.verdict({}, {"a": 1}) is WAIT
    assert join.witness({}, {"a": 1}) is None
    assert join.witness({"a->j": 1}, {}) is None


def test_the_same_net_keeps_its_joins() -> None:
    compiled = compile_net(net("start > s > a > j > end", "s > b > j", j=task(OR)))
    assert compile_or_joins(compiled) is compile_or_joins(compiled)
    assert list(compile_or_joins(compiled)) == ["j"]
    assert compile_or_joins(compile_net(net("start > a > end"))) == {}


def test_dependencies_are_what_is_upstream_and_what_holds_its_locks() -> None:
    found = joins_of(
        net(
            "start > s > a > j > z > end",
            "s > b > j",
            "s > c > y > end",
            j=task(OR),
            b=task(mutex="m", reads=("s->a",)),
            c=task(mutex="m"),
        )
    )["j"].dependencies
    assert found.tasks == {"s", "a", "b", "c"}
    assert found.conditions == {"start", "s->a", "s->b", "s->c", "a->j", "b->j"}


@pytest.mark.parametrize("size", [20, 200, 800])
def test_long_ladders_are_decided(size: int) -> None:
    chains = ["start > s > a > j > end"]
    ladder = {"j": task(OR)}
    before = "s"
    for rung in range(0, size, 4):
        split, left, right, after = (f"{letter}{rung:03}" for letter in "tlre")
        chains += [f"{before} > {split} > {left} > {after}", f"{split} > {right} > {after}"]
        ladder[after] = task(AND)
        before = after
    spec = net(*chains, f"{before} > j", "start > s", j=task(OR))
    spec = msgspec.structs.replace(
        spec, tasks=tuple(msgspec.structs.replace(ladder.get(each.id, each), id=each.id) for each in spec.tasks)
    )
    join = joins_of(spec)["j"]
    witness = join.witness({"a->j": 1}, {"s": 1})
    assert witness is not None
    assert (witness.token, witness.input) == ("s", f"{before}->j")
    assert len(witness.path) == 1 + 3 * size // 4
    assert join.verdict({"a->j": 1, "t000->l000": 1, "t000->r000": 1}, {}) is WAIT
    assert join.verdict({"a->j": 1, "t000->l000": 1}, {}) is FIRE  # its partner never comes


# ------------------------------------------------------------------------------------------------------- random nets


@dataclass
class Tally:
    """What a run over random nets has seen."""

    nets: int = 0
    entangled: int = 0
    counts: Counter[str] = field(default_factory=Counter)


def compare(nets: int, first: int) -> Tally:
    """Random nets until so many have been decided by the oracle in a marking that is neither full nor empty."""
    tally = Tally()
    seed = first
    while tally.nets < nets:
        spec = random_net(seed)
        oracle = Oracle(spec)
        joins = joins_of(spec)
        decided = False
        for nth in range(4):
            state = random_state(oracle, seed * 10 + nth)
            for name, join in joins.items():
                decided |= agree(oracle, name, join, state, tally, f"net {seed}, state {nth}, join {name}")
        two = sum(1 for each in spec.tasks if each.join.kind == "or" and len(oracle.inputs[each.id]) > 1) > 1
        tally.nets += decided
        tally.entangled += decided and two and has_cycle(spec) and any(each.cancels for each in spec.tasks)
        seed += 1
    return tally


def agree(oracle: Oracle, name: str, join: OrJoin, state: State, tally: Tally, where: str) -> bool:
    """Compare one verdict; whether it was one that needed a decision and got it."""
    marking, busy, seen = dict(state.marking), dict(state.busy), dict(state.seen)
    marked = [place for place in oracle.inputs[name] if place in marking]
    fires = oracle.fires(name, state, states_max=STATES_MAX, tokens_max=TOKENS_MAX)
    if fires is None:
        tally.counts["the oracle gave up"] += 1
        return False
    verdict = join.verdict(marking, busy, seen)
    if verdict is UNDECIDED:
        tally.counts["undecided"] += 1
        return False
    assert verdict is (FIRE if fires else WAIT), f"{where}: {verdict} for {marking} {busy} {seen}"
    if verdict is WAIT and marked:
        witness = join.witness(marking, busy, seen)
        assert witness is not None, where
        assert_leads_there(oracle, witness, marking, busy, where)
    tally.counts[verdict.value] += 1
    return 0 < len(marked) < len(oracle.inputs[name])


def assert_leads_there(
    oracle: Oracle, witness: Witness, marking: Mapping[str, int], busy: Mapping[str, int], where: str
) -> None:
    """The witness is a live token, and its path is a way through the net to an empty input."""
    assert witness.token in (busy if witness.busy else marking), where
    assert witness.input not in marking, where
    at_work, path = ((witness.token,), witness.path[1:]) if witness.busy else ((), witness.path)
    assert witness.path[: len(at_work)] == at_work, where
    before = {place for task_ in at_work for place, _ in oracle.outputs[task_]} or {witness.token}
    for step in path:
        assert before & set(oracle.inputs[step]), where
        before = {place for place, _ in oracle.outputs[step]}
    assert witness.input in before, where


def test_verdicts_agree_with_the_oracle_at_a_glance() -> None:
    tally = compare(30, 0)
    assert tally.counts["fire"] > 0 < tally.counts["wait"]


@pytest.mark.long
def test_verdicts_agree_with_the_oracle(budget: RunBudget, record_property: Callable[[str, object], None]) -> None:
    wanted = max(budget.steps // STEPS_PER_NET, 1)
    tally = compare(wanted, 1_000)
    record_property("nets decided", tally.nets)
    record_property("of them with a loop, a cancellation and two or-joins", tally.entangled)
    record_property("verdicts", dict(tally.counts))
    print(f"{tally.nets} nets decided, {tally.entangled} with a loop, a cancellation and two or-joins: {tally.counts}")
    assert tally.entangled >= wanted * 3 // 20
    assert tally.counts["undecided"] <= sum(tally.counts.values()) // 500


@given(st.integers(0, 1_000_000), st.randoms(use_true_random=False))
def test_verdicts_do_not_depend_on_names_or_on_the_order_of_declarations(seed: int, rng: random.Random) -> None:
    spec = random_net(seed)
    state = random_state(Oracle(spec), seed)
    names = sorted({*(each.id for each in spec.tasks), *(each.id for each in spec.conditions)})
    others = rng.sample([f"n{number}" for number in range(99)], len(names))
    renamed = dict(zip(names, others, strict=True))
    other = moved(spec, renamed, rng)
    joins = joins_of(other)
    for name, join in joins_of(spec).items():
        marking, busy = dict(state.marking), dict(state.busy)
        seen = {each: frozenset(places) for each, places in state.seen}
        verdict = join.verdict(marking, busy, seen)
        again = joins[renamed[name]].verdict(
            {place_in(place, renamed): count for place, count in marking.items()},
            {renamed[each]: count for each, count in busy.items()},
            {renamed[each]: {place_in(place, renamed) for place in places} for each, places in seen.items()},
        )
        assert again is verdict or UNDECIDED in (again, verdict)


def place_in(name: str, renamed: Mapping[str, str]) -> str:
    return "->".join(renamed.get(part, part) for part in name.split("->"))


def moved(spec: Net, renamed: Mapping[str, str], rng: random.Random) -> Net:
    """The same net under other names, declared in another order."""

    def shuffled(names: tuple[str, ...]) -> tuple[str, ...]:
        found = [place_in(name, renamed) for name in names]
        rng.shuffle(found)
        return tuple(found)

    tasks = [
        msgspec.structs.replace(
            each,
            id=renamed[each.id],
            cancels=shuffled(each.cancels),
            reads=shuffled(each.reads),
            on_error=None if each.on_error is None else place_in(each.on_error, renamed),
        )
        for each in spec.tasks
    ]
    flows = [
        Flow(place_in(each.source, renamed), place_in(each.target, renamed), default=each.default)
        for each in spec.flows
    ]
    conditions = [msgspec.structs.replace(each, id=renamed[each.id]) for each in spec.conditions]
    for declared in (tasks, flows, conditions):
        rng.shuffle(declared)
    sections = tuple((name, shuffled(members)) for name, members in spec.sections)
    return msgspec.structs.replace(
        spec, tasks=tuple(tasks), flows=tuple(flows), conditions=tuple(conditions), sections=sections
    )


@given(st.integers(0, 1_000_000))
def test_nothing_but_its_dependencies_changes_a_verdict(seed: int) -> None:
    spec = random_net(seed)
    oracle = Oracle(spec)
    here, there = (random_state(oracle, seed + nth) for nth in (1, 2))
    for join in joins_of(spec).values():
        depends = join.dependencies
        marking = dict(mixed(here.marking, there.marking, depends.conditions))
        busy = dict(mixed(here.busy, there.busy, depends.tasks))
        seen = dict(mixed(here.seen, there.seen, depends.tasks))
        verdict = join.verdict(dict(here.marking), dict(here.busy), dict(here.seen))
        assert join.verdict(marking, busy, seen) is verdict


@pytest.mark.parametrize("turned", [False, True])
def test_a_token_that_can_get_into_an_input_is_not_taken_for_one_in_it(turned: bool) -> None:
    spec = net(
        "start > s > d > j > end",
        "s > f > j",
        "s > x > b > j",
        "s > y > b",
        j=task(OR),
        b=task(AND),
        section=("d",),
    )
    expected = [("s->d f->j x->b", WAIT), ("d->j f->j x->b", FIRE)]
    join = joins_of(spec)["j"]
    for text, verdict in expected[::-1] if turned else expected:
        assert join.verdict(*tokens(text)) is verdict


@given(st.integers(0, 1_000_000))
def test_what_was_asked_before_changes_no_verdict(seed: int) -> None:
    spec = random_net(seed)
    oracle = Oracle(spec)
    asked = [random_state(oracle, seed)]
    for state in asked:
        if len(asked) < ASKED_MAX:
            asked += (after for after in oracle.steps(state) if after not in asked)
    often = joins_of(spec)
    for state in asked[:ASKED_MAX]:
        marking, busy, seen = dict(state.marking), dict(state.busy), dict(state.seen)
        for name, once in joins_of(spec).items():
            assert often[name].verdict(marking, busy, seen) is once.verdict(marking, busy, seen)
            assert often[name].witness(marking, busy, seen) == once.witness(marking, busy, seen)


T = TypeVar("T")


def mixed(
    ours: frozenset[tuple[str, T]], theirs: frozenset[tuple[str, T]], names: frozenset[str]
) -> Iterator[tuple[str, T]]:
    """Ours where it is named, theirs elsewhere."""
    yield from (each for each in ours if each[0] in names)
    yield from (each for each in theirs if each[0] not in names)


@given(st.integers(0, 1_000_000))
def test_without_the_means_to_decide_the_verdict_is_undecided_and_never_a_guess(seed: int) -> None:
    spec = random_net(seed)
    state = random_state(Oracle(spec), seed)
    compiled = compile_net(spec)
    hasty = compile_or_joins(compiled, Effort(Budget(3, 2), 3, Budget(5, 3)))
    for name, join in compile_or_joins(compiled).items():
        verdict = join.verdict(dict(state.marking), dict(state.busy), dict(state.seen))
        found = hasty[name].verdict(dict(state.marking), dict(state.busy), dict(state.seen))
        assert found is verdict or UNDECIDED in (found, verdict)


def test_some_verdict_needs_more_than_a_glance() -> None:
    """An alternation that only a search decides: each side cancels the other's way in."""
    spec = net(
        "start > s > a > j > end",
        "s > b > d > j",
        "s > c > d",
        j=task(OR),
        b=task(cancels=("c->d",)),
        c=task(cancels=("b->d",)),
        d=task(AND),
    )
    state = tokens("a->j s->b s->c")
    compiled = compile_net(spec)
    assert compile_or_joins(compiled)["j"].verdict(*state) is FIRE
    assert compile_or_joins(compiled, Effort(Budget(0, 0), 0, Budget(0, 0)))["j"].verdict(*state) is UNDECIDED


# --------------------------------------------------------------------------------------------------- in a running case


def waiting(**tasks: Document) -> Played:
    """s forks to a and b, which an or-join brings together; a is done already."""
    others = [each for name in tasks if name not in "sabj" for each in path("s", name)]
    document: Document = {
        "tasks": {"s": {"split": "and"}, "a": WORK, "b": WORK, "j": {"join": "or"}, **tasks},
        "flows": [*path("start", "s", "a", "j", "end"), *path("s", "b", "j"), *others],
    }
    played = Played(document)
    played.complete("a")
    assert played.case.root.marking.get("a->j") == 1, "the or-join has not waited"
    return played


def test_in_a_case_it_fires_when_the_work_that_it_waits_for_is_cancelled() -> None:
    played = waiting()
    played.do(c.StartItem(played.ref("b"), "ann"))
    played.do(c.CancelTask("b"))
    assert played.case.state == "completed"


def test_in_a_case_it_fires_when_a_region_takes_the_token_that_it_waits_for() -> None:
    played = waiting(k={**WORK, "cancels": ["b"]})
    assert "a->j" in played.case.root.marking
    played.complete("k")
    assert played.case.state == "completed"


def test_in_a_case_failed_work_is_waited_for_until_it_is_dealt_with() -> None:
    played = waiting()
    played.do(c.StartItem(played.ref("b"), "ann"))
    played.do(c.FailItem(played.ref("b"), "broken"))
    assert len(played.incidents) == 1
    assert "a->j" in played.case.root.marking
    played.resolve("skip")
    assert played.case.state == "completed"


def test_in_a_case_that_is_suspended_it_waits() -> None:
    played = waiting()
    played.do(c.StartItem(played.ref("b"), "ann"))
    played.do(c.SuspendCase())
    played.complete("b")
    assert played.case.state == "suspended"
    played.do(c.ResumeCase())
    assert played.case.state == "completed"


def hard(threads: int, places: int) -> Document:
    """So many threads wander about between places by hand; the or-join would get one more token if there were one more
    thread. Neither the markings that can be reached nor those that would do can be gone through."""
    names = [f"p{number}" for number in range(places)]
    tasks: Document = {
        "spread": {"split": {"threads": threads}},
        "many": {"join": {"merge": threads + 1}},
        "x": WORK,
        "j": {**WORK, "join": "or"},
    }
    flows = [flow("start", "open"), flow("open", "x"), flow("open", "spread"), flow("spread", names[0])]
    flows += [flow("x", "j"), flow(names[-1], "many"), flow("many", "j"), flow("j", "end")]
    for number, name in enumerate(names):
        tasks[f"t{number}"] = {**WORK, "split": "xor"}
        flows.append(flow(name, f"t{number}"))
        others = [other for other in names if other != name]
        flows += [flow(f"t{number}", other, f"data.to == '{other}'") for other in others[1:]]
        flows.append(flow(f"t{number}", others[0], default=True))
    return {"tasks": {"open": {}, **tasks}, "flows": flows, "conditions": names}


def test_what_cannot_be_decided_keeps_waiting_and_is_asked_of_a_person() -> None:
    played = Played(hard(30, 5))
    events = played.complete("x")
    assert [event.kind for event in events if isinstance(event, e.IncidentRaised)] == ["or_join_undecided"]
    assert "j" not in played.open
    assert played.case.state == "running"
    told = played.explained("j")
    assert (told.status, told.arrived) == ("waiting", ("x->j",))
    assert "not be decided" in told.sentence
    played.resolve("retry")
    assert played.incidents == ["or_join_undecided"], "asked again, and remembered"
    assert "j" not in played.open
    played.resolve("fail_case")
    assert played.case.state == "failed"
