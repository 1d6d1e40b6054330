"""Random nets, random commands, right and wrong ones: the replayed case always equals the live one.

After every step: the recorded events, decoded from their bytes, fold into the same state; a snapshot round trip gives
it again; deciding a second time on a copy gives the same events; the counters agree with what they count; a command
that raises has changed nothing; at rest everything that can be done is offered and nothing else; an ended case is
empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
from hypothesis import assume, event, given
from hypothesis import strategies as st

from knhk_workflow import InvalidDocument, WorkflowError
from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import (
    LIVE_STATES,
    OPEN_ITEM_STATES,
    RETRYING,
    Activation,
    Case,
    decode_state,
    encode_state,
    item_ref,
)
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.decide import create, decide
from knhk_workflow.core.explain import explain, summary
from knhk_workflow.core.joins import offers
from knhk_workflow.core.step import Step, begin
from knhk_workflow.model.net import Model, compile_spec
from knhk_workflow.model.parse import parse_spec, unsupported

Document = dict[str, object]

COMMANDS_MAX = 25
_event = msgspec.msgpack.Decoder(e.EventType)

GUARDS = ("data.p", "!data.p", "data.n > 2", "data.n <= 2", "data.q == 'yes'", "true", "false", "data.missing")
INPUTS: tuple[dict[str, str], ...] = (
    {"n": "data.n + 1", "p": "data.p"},
    {"n": "data.n", "p": "!data.p", "q": "'yes'"},
    {"x": "data.missing"},
    {},
)
OUTPUTS: tuple[dict[str, str], ...] = ({"n": "data.n + 1"}, {"p": "!data.p"}, {"q": "data.q"}, {})
DATA = ('{"n":0,"p":true,"q":"no"}', '{"n":5,"p":false}', "{}")
PATCHES = ('{"n":1}', '{"p":true}', '{"p":false,"missing":true}', '{"q":"yes","n":3}', '{"n":null}', "{}")


@st.composite
def net(draw: st.DrawFn, sub_nets: tuple[str, ...]) -> Document:
    """One net: any graph over a few tasks and places, guarded or not."""
    tasks = [f"T{number}" for number in range(draw(st.integers(1, 6)))]
    places = [f"p{number}" for number in range(draw(st.integers(0, 2)))]
    flows: dict[tuple[str, str], Document] = {}

    def connect(source: str, target: str) -> None:
        flows.setdefault((source, target), {"from": source, "to": target})

    connect("start", draw(st.sampled_from(tasks)))
    for task in tasks:
        for target in draw(st.lists(st.sampled_from([*tasks, *places, "end"]), min_size=1, max_size=3, unique=True)):
            connect(task, target)
    for place in places:
        for target in draw(st.lists(st.sampled_from(tasks), max_size=2, unique=True)):
            connect(place, target)
    declared: dict[str, Document] = {}
    for task in tasks:
        mine = [flow for (source, _), flow in flows.items() if source == task]
        if draw(st.booleans()):
            last = mine[-1]
            for flow in mine[:-1]:
                flow["when"] = draw(st.sampled_from(GUARDS))
            if draw(st.booleans()):
                last["default"] = True
            else:
                last["when"] = draw(st.sampled_from(GUARDS))
        declared[task] = draw(task_body(sub_nets))
    return {
        "tasks": declared,
        "conditions": places,
        "flows": list(flows.values()),
        "termination": draw(st.sampled_from(["implicit", "explicit"])),
    }


@st.composite
def task_body(draw: st.DrawFn, sub_nets: tuple[str, ...]) -> Document:
    """What one task is: mostly outside work, else routing, else a sub-net."""
    body: Document = {"join": draw(st.sampled_from(["xor", "and"]))}
    kind = draw(st.sampled_from(["work", "work", "work", "route", *(["net"] if sub_nets else [])]))
    if kind == "work":
        body["required_roles"] = ["worker"]
    elif kind == "net":
        body["net"] = draw(st.sampled_from(sub_nets))
    if kind != "route" and draw(st.integers(0, 3)) == 0:
        body["in"] = draw(st.sampled_from(INPUTS))
    if draw(st.integers(0, 3)) == 0:
        body["out"] = draw(st.sampled_from(OUTPUTS))
    return body


@st.composite
def workflow(draw: st.DrawFn) -> Document:
    """A workflow of up to three nets, which may call each other and themselves."""
    names = ("one", "two")[: draw(st.integers(0, 2))]
    return {
        "id": "random",
        **draw(net(names)),
        "nets": {name: draw(net(names)) for name in names},
        "on_incident": draw(st.sampled_from(["keep", "keep", "keep", "fail"])),
    }


CHOICE = st.tuples(st.integers(0, 29), st.integers(0, 7), st.integers(0, 5))
CHOICES = st.one_of(
    st.lists(CHOICE, max_size=COMMANDS_MAX),
    st.lists(CHOICE, min_size=COMMANDS_MAX // 2, max_size=COMMANDS_MAX),  # small examples alone reach little
)
STARTED = st.sampled_from([True, True, True, True, False])


@given(workflow(), st.sampled_from(DATA), STARTED, CHOICES)
def test_a_case_equals_its_replay_whatever_happens(
    document: Document, data: str, start: bool, choices: list[tuple[int, int, int]]
) -> None:
    try:
        spec = parse_spec(document)
    except InvalidDocument:
        assume(False)
        raise
    assert unsupported(spec) == ()
    model = compile_spec(spec, 1, b"digest")
    command = c.CreateCase("default", "case", "random", 1, b"digest", b"salt", data.encode(), start=start)
    step = create(model, command, 10)
    case = step.case
    shadow = checked(None, step, model)
    history = list(step.events)
    for now, (kind, which, how) in enumerate(choices, 11):
        command_now = command_of(case, kind, which, how)
        before = encode_state(case)
        twin = decode_state(before)
        try:
            step = decide(case, model, command_now, now)
        except WorkflowError:
            assert encode_state(case) == before, f"{command_now} raised and changed the case"
            event("refused")
            continue
        assert decide(twin, model, command_now, now).events == step.events
        shadow = checked(shadow, step, model)
        history.extend(step.events)
    assert encode_state(replay(None, case.updated_at, history)) == encode_state(untimed(case, case.updated_at))
    event(f"ended {case.state}")
    for incident in case.incidents.values():
        event(f"incident {incident.kind}")


def untimed(case: Case, now: int) -> Case:
    """The case as a replay of all its events at one time gives it."""
    copy = decode_state(encode_state(case))
    copy.created_at = now
    for incident in copy.incidents.values():
        incident.raised_at = now
    for activation in copy.activations.values():
        for run in activation.instances.values():
            run.changed_at = now
            run.offered_at = now if run.offered_at else 0  # passed over before it was offered
    return copy


def command_of(case: Case, kind: int, which: int, how: int) -> c.Command:
    """A command from three small numbers: mostly about open work, sometimes about anything."""
    refs = [item_ref(activation, run) for activation, run in case.open_work()]
    ref = refs[which % len(refs)] if refs else c.ItemRef(which, 1, 1)
    if kind == 29:
        ref = c.ItemRef(which, how, how)
        kind = which
    patch = PATCHES[how].encode()
    if kind < 8:
        return c.CompleteItem(ref, patch if how else b"")
    if kind < 13:
        return c.StartItem(ref, "ada" if how == 1 else "")
    if kind < 15:
        return c.ClaimItem(ref, ("ada", "bob")[how % 2])
    if kind == 15:
        return c.ReleaseItem(ref)
    if kind < 18:
        return c.FailItem(ref, "broken")
    if kind == 18:
        return c.SkipItem(ref)
    if kind < 22:
        actions = ("retry", "retry", "skip", "complete", "complete", "fail_case")
        incidents = sorted(case.incidents)
        number = incidents[which % len(incidents)] if incidents else which
        return c.ResolveIncident(number, actions[how], patch)  # type: ignore[arg-type]  # one of four
    if kind == 22:
        return c.SuspendCase()
    if kind < 25:
        return c.ResumeCase()
    if kind == 25:
        return c.UpdateCaseData(patch, case.sequence if which == 1 else which % 2)
    if kind == 26:
        return c.StartCase(again=bool(how % 2))
    if kind == 27:
        return c.CancelCase() if how == 0 else c.UpdateCaseData(patch)
    return c.Continue()


def checked(shadow: Case | None, step: Step, model: Model) -> Case:
    """Check everything that holds after every step; the replayed case."""
    case = step.case
    state = encode_state(case)
    if step.events:
        recorded = [_event.decode(msgspec.msgpack.encode(each)) for each in step.events]
        assert recorded == step.events
        shadow = replay(shadow, step.now, recorded)
    assert shadow is not None
    assert encode_state(shadow) == state, "the replay differs"
    assert encode_state(decode_state(state)) == state, "the snapshot differs"
    counters(case)
    if case.state in ENDED:
        empty(case)
    elif case.state == "running" and not case.ready:
        at_rest(case, model)
    assert summary(case, explain(case, model))
    return shadow


def counters(case: Case) -> None:
    """Everything counted twice agrees, and everything named exists."""
    assert case.open_items == sum(1 for _ in case.open_work())
    live: Counter[tuple[int, str]] = Counter()
    for number, activation in case.activations.items():
        assert activation.number == number <= case.last_activation
        live[activation.net, activation.task] += 1
        assert number in case.nets[activation.net].active[activation.task]
        assert all(case.incidents[each].activation == number for each in activation.incidents)
        for run in activation.instances.values():
            if run.child:
                child = case.nets[run.child]
                assert (child.activation, child.instance, child.parent) == (number, run.number, activation.net)
            assert (run.state == "running") == bool(run.child)
            if run.state == "started":
                assert activation.started
    for number, net in case.nets.items():
        assert net.number == number <= case.last_net
        assert all(count > 0 for count in net.marking.values())
        assert net.tokens == sum(net.marking.values())
        assert all(net.active.values())
        for task, numbers in net.active.items():
            assert live[number, task] == len(numbers)
        if net.incident:
            assert case.incidents[net.incident].net == number
        if number > 1:
            assert case.activations[net.activation].instances[net.instance].child == number
            assert net.depth == case.nets[net.parent].depth + 1
    timers(case)
    for number, incident in case.incidents.items():
        holder = case.activations[incident.activation] if incident.activation else case.nets[incident.net]
        assert number in (holder.incidents if isinstance(holder, Activation) else (holder.incident,))


def timers(case: Case) -> None:
    """Every timer is about something that lives, and what it is about knows it."""
    known: list[int] = []
    for activation in case.activations.values():
        known.extend(activation.timers)
        for run in activation.instances.values():
            if run.timer:
                assert case.timers[run.timer].instance == run.number
                assert run.state in LIVE_STATES
                known.append(run.timer)
            assert (run.state == RETRYING) == (bool(run.timer) and case.timers[run.timer].kind == "retry")
    assert sorted(known) == sorted(case.timers)
    for number, timer in case.timers.items():
        activation = case.activations[timer.activation]
        assert (timer.net, timer.task) == (activation.net, activation.task)
        assert timer.number == number <= case.last_timer
        assert (number in activation.timers) == (not timer.instance)


def empty(case: Case) -> None:
    """Nothing of an ended case is left but its data."""
    assert case.timers == {}
    assert case.activations == {}
    assert case.incidents == {}
    assert list(case.nets) == [1]
    assert case.tokens() == 0
    assert case.root.active == {}
    assert case.ready == ()


def at_rest(case: Case, model: Model) -> None:
    """Everything that could be done is offered, nothing that could not is, and a case without work has a reason."""
    assert case.open_items or case.incidents, "the case rests without work and without an incident"
    if any(incident.kind in ("token_limit", "settle_limit") for incident in case.incidents.values()):
        return
    for net in case.nets.values():
        for node in model.nets[net.name].tasks.values():
            possible = dict(offers(begin(case, model, 0), node, net))
            if node.automatic:
                assert not possible, f"{node.id} could fire"
                continue
            offered = Counter(
                activation.inputs
                for activation in (case.activations[number] for number in net.active.get(node.id, ()))
                if not activation.started
            )
            assert offered == Counter(possible), f"{node.id}: {offered} offered, {possible} possible"
        assert net.active or net.incident, f"net instance {net.number} rests without work"


@given(workflow(), st.sampled_from(DATA), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7)), max_size=15))
def test_cancelling_at_any_moment_leaves_nothing_behind(
    document: Document, data: str, choices: list[tuple[int, int]]
) -> None:
    try:
        model = compile_spec(parse_spec(document), 1, b"digest")
    except InvalidDocument:
        assume(False)
        raise
    command = c.CreateCase("default", "case", "random", 1, b"digest", b"salt", data.encode(), start=True)
    case = create(model, command, 10).case
    opened = set(open_refs(case))
    for now, (kind, which) in enumerate(choices, 11):
        try:
            decide(case, model, command_of(case, kind, which, 0), now)
        except WorkflowError:
            continue
        opened |= set(open_refs(case))
    if case.state in ENDED:
        return
    ended = decide(case, model, c.CancelCase("enough"), 100)
    assert case.state == "cancelled"
    assert case.reason == "enough"
    empty(case)
    assert {type(each) for each in ended.events} <= {
        e.ItemWithdrawn,
        e.ItemTerminated,
        e.TaskCancelled,
        e.NetCancelled,
        e.IncidentResolved,
        e.StateChanged,
    }
    for ref in opened:
        try:
            decide(case, model, c.CompleteItem(ref), 101)
        except WorkflowError:
            continue
        raise AssertionError(f"{ref} could be completed after the case was cancelled")


def open_refs(case: Case) -> Iterator[c.ItemRef]:
    """References of all open work."""
    for activation, run in case.open_work():
        assert run.state in OPEN_ITEM_STATES
        yield item_ref(activation, run)
