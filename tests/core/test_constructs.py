"""Random nets over every construct, random stimuli: what must hold whatever an author draws and whoever acts.

Never a negative marking or a lost count, replay equals live, a refused command changes nothing, every started item can
end, and cancelling leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import msgspec
from hypothesis import assume, event, given
from hypothesis import strategies as st

from knhk_workflow import InvalidDocument, WorkflowError
from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import Case, decode_state, encode_state, item_ref
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.decide import create, decide
from knhk_workflow.core.explain import explain, summary
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Model, compile_spec
from knhk_workflow.model.parse import parse_spec, unsupported
from tests.core.test_replay import CHOICES, DATA, GUARDS, Document, command_of, counters, empty, workflow

SIGNALS = ("s", "t")
LATER = "1970-01-01T00:00:00.000001Z"  # a microsecond: some of the commands come before it, some after it
DUE = f'{{"n":3,"p":false,"due":"{LATER}"}}'

_event = msgspec.msgpack.Decoder(e.EventType)


@st.composite
def adorned(draw: st.DrawFn) -> Document:
    """A workflow of `test_replay`, its tasks adorned with every other construct."""
    document = draw(workflow())
    nets = document["nets"]
    assert isinstance(nets, dict)
    document["on_incident"] = "keep"  # a case that fails at the first incident shows nothing more
    for net in (document, *nets.values()):
        adorn(draw, net)
    if draw(st.booleans()):
        for net in (document, *nets.values()):
            undo(draw, net)
        document["on_incident"] = draw(st.sampled_from(["keep", "keep", "keep", "fail"]))
    return document


def undo(draw: st.DrawFn, net: Document) -> None:
    """Compensations for some tasks of one net: work, work that is tried again, one that does itself."""
    tasks = net["tasks"]
    assert isinstance(tasks, dict)
    for name in sorted(tasks):
        if draw(st.booleans()):
            tasks[name]["compensate"] = draw(st.sampled_from(["U0", "U1", "U2"]))
    used = {body["compensate"] for body in tasks.values() if "compensate" in body}
    bodies: dict[str, Document] = {
        "U0": {"required_roles": ["worker"]},
        "U1": {"required_roles": ["worker"], "retry": {"max_attempts": 2, "backoff": 2e-9}, "timeout": 7e-9},
        "U2": {"out": {"undone": "true"}},
    }
    tasks.update({name: bodies[name] for name in sorted(used)})


def adorn(draw: st.DrawFn, net: Document) -> None:
    """Constructs on the tasks of one net, as the parser accepts them."""
    tasks, flows = net["tasks"], net["flows"]
    assert isinstance(tasks, dict)
    assert isinstance(flows, list)
    names = sorted(tasks)
    places = [f"{flow['from']}->{flow['to']}" for flow in flows if flow["from"] in tasks and flow["to"] in tasks]
    for name in names:
        body = tasks[name]
        arriving = sum(1 for flow in flows if flow["to"] == name)
        if "net" not in body:
            body["required_roles"] = ["worker"]
            if draw(st.integers(0, 4)) == 0:
                del body["required_roles"]
        guarded = [flow for flow in flows if flow["from"] == name and ("when" in flow or "default" in flow)]
        what = draw(st.sets(st.integers(0, 9), max_size=2)) | draw(st.sets(st.integers(10, 13), max_size=2))
        if 0 in what and arriving > 1:
            mode = draw(st.sampled_from(["structured", "blocking", "cancelling"]))
            body["join"] = {"partial": {"need": draw(st.integers(1, arriving)), "mode": mode}}
        elif 1 in what and arriving:
            body["join"] = draw(st.sampled_from(["or", {"merge": 2}]))
        if guarded and 2 in what:
            body["split"] = "or"
        elif not guarded and 2 in what:
            body["split"] = {"threads": 2}
        if 3 in what and "net" not in body:
            body["instances"] = draw(
                st.fixed_dictionaries(
                    {"min": st.integers(0, 3)},
                    optional={
                        "rest": st.sampled_from(["continue", "cancel"]),
                        "threshold": st.just(1),
                        "sync": st.booleans(),
                        "until": st.sampled_from(["item.completed >= 2", *GUARDS]),
                    },
                )
            )
            if body["instances"]["min"] == 0:
                body["instances"].pop("threshold", None)
            if draw(st.booleans()):
                body["instances"] |= {"create": "dynamic", "max": 5}
        elif 4 in what and "required_roles" in body:
            body["loop"] = draw(st.sampled_from([{"while": "data.n < 3"}, {"until": "data.p"}]))
        if 5 in what:
            body["cancels"] = draw(st.lists(st.sampled_from([*names, *places]), min_size=1, max_size=3, unique=True))
        if 6 in what:
            body["mutex"] = draw(st.sampled_from(["m", "k"]))
        if 7 in what and places:
            body["reads"] = [draw(st.sampled_from(places))]
        if 8 in what and "net" not in body:
            mode = draw(st.sampled_from(["transient", "persistent"]))
            body["trigger"] = {"name": draw(st.sampled_from(SIGNALS)), "mode": mode}
        if 9 in what:
            body["completes"] = [draw(st.sampled_from(names))]
        if 10 in what and "required_roles" not in body and not {"net", "trigger", "instances"} & body.keys():
            body["timer"] = draw(st.sampled_from([{"after": 5e-9}, {"after": "data.n"}, {"at": "data.due"}]))
        elif {"required_roles", "net", "trigger"} & body.keys():
            timed(draw, body, what, [str(flow["to"]) for flow in flows if flow["from"] == name])
    if draw(st.booleans()):
        net["sections"] = {"area": draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))}


def timed(draw: st.DrawFn, body: Document, what: set[int], targets: list[str]) -> None:
    """Limits of work, in nanoseconds, and what follows them."""
    if 11 in what:
        body["timeout"] = 7e-9
    if 12 in what:
        body["deadline"] = draw(st.sampled_from(["data.due", LATER]))
    if what & {11, 12} and targets and draw(st.booleans()):
        body["on_timeout"] = draw(st.sampled_from(targets))
    if 13 in what:
        body["retry"] = {"max_attempts": 3, "backoff": draw(st.sampled_from([2e-9, 4e-9])), "factor": 3}
    if targets and draw(st.integers(0, 4)) == 0:
        body["on_error"] = draw(st.sampled_from(targets))


def any_command(case: Case, kind: int, which: int, how: int) -> c.Command:
    """One in three about the constructs, else as in `test_replay`."""
    tasks = sorted({activation.task for activation in case.activations.values()}) or ["T0"]
    task = tasks[which % len(tasks)]
    if case.timers and kind % 3 == 1:
        numbers = sorted(case.timers, key=lambda number: case.timers[number].due)
        return c.FireTimer(numbers[which % len(numbers)] if how else 999)
    commands = (
        c.Signal(SIGNALS[how % 2], b'{"n":9}' if which % 2 else b""),
        c.CancelTask(task),
        c.AddInstance(task),
        c.CloseInstances(task),
        c.CompleteInstances(task),
        c.CancelInstances(task),
    )
    return commands[how] if kind % 3 == 0 else command_of(case, kind, which, how)


def checked(shadow: Case | None, step: Step, model: Model) -> Case:
    """What holds after every step; the replayed case."""
    case = step.case
    state = encode_state(case)
    recorded = [_event.decode(msgspec.msgpack.encode(each)) for each in step.events]
    if recorded:
        shadow = replay(shadow, step.now, recorded)
    assert shadow is not None
    assert encode_state(shadow) == state, "the replay differs"
    counters(case)
    assert summary(case, explain(case, model))
    assert encode_state(case) == state, "explaining changed the case"
    if case.state in ENDED:
        empty(case)
        assert (case.root.completions, case.root.outcome) == ([], "")
        assert case.signals == []
        assert case.locks == {}
    elif case.state == "running" and not case.ready:
        assert case.activations or case.incidents, "the case rests without anything to wait for"
    return shadow


def started_work_can_end(case: Case, model: Model, now: int) -> None:
    """Whatever has been started can be completed, in any state that accepts results."""
    for activation, run in case.open_work():
        if run.state == "started":
            copy = decode_state(encode_state(case))
            decide(copy, model, c.CompleteItem(item_ref(activation, run), b"{}", run.owner), now)


@st.composite
def undoable(draw: st.DrawFn) -> Document:
    """Composite tasks three deep, work that can be undone on every level, and every way for them to end early."""
    nets = {name: _scope(draw, below) for name, below in (("", "outer"), ("outer", "inner"), ("inner", ""))}
    on_incident = draw(st.sampled_from(["keep", "keep", "fail"]))
    return {"id": "random", "on_incident": on_incident, **nets.pop(""), "nets": nets}


def _scope(draw: st.DrawFn, below: str) -> Document:
    """Two branches side by side, of work and, where there is one, the composite task `C` for the net below."""
    tasks: dict[str, Document] = {"Fork": {}, "Join": {"join": "and"}, "Sorry": {"required_roles": ["worker"]}}
    flows: list[Document] = [{"from": "start", "to": "Fork"}, {"from": "Join", "to": "end"}]
    branches = (["A", "C", "B"], ["D", "E"]) if below else (["A", "B"], ["D"])
    for branch in branches:
        for name in branch:
            tasks[name] = {"net": below} if name == "C" else {"required_roles": ["worker"]}
        flows.append({"from": "Fork", "to": branch[0]})
        flows.extend({"from": source, "to": target} for source, target in pairwise(branch))
        flows.append({"from": branch[-1], "to": "Join"})
    undo(draw, {"tasks": tasks})
    if below:
        composite = tasks["C"]
        if draw(st.integers(0, 2)) == 0:
            composite["instances"] = draw(
                st.fixed_dictionaries(
                    {"min": st.integers(1, 3)},
                    optional={
                        "rest": st.sampled_from(["continue", "cancel"]),
                        "threshold": st.just(1),
                        "create": st.just("dynamic"),
                        "sync": st.booleans(),
                        "sequential": st.booleans(),
                    },
                )
            )
        if draw(st.booleans()):
            composite |= {"split": "xor", draw(st.sampled_from(["on_error", "on_timeout"])): "Sorry"}
            next(flow for flow in flows if flow["from"] == "C")["default"] = True
            flows.append({"from": "C", "to": "Sorry", "when": "false"})
            flows.append({"from": "Sorry", "to": "end"})
        else:
            del tasks["Sorry"]
        if draw(st.booleans()):
            composite |= draw(st.sampled_from([{"timeout": 7e-9}, {"timeout": 7e-9}, {"deadline": LATER}]))
        if draw(st.integers(0, 3)) == 0:
            tasks["D"]["cancels"] = draw(st.lists(st.sampled_from(["A", "B", "C", "E"]), min_size=1, unique=True))
        if draw(st.integers(0, 3)) == 0:
            tasks["E"]["completes"] = ["C"]
    else:
        del tasks["Sorry"]
    explicit: Document = {"termination": "explicit"} if draw(st.integers(0, 3)) == 0 else {}
    if explicit:
        flows.append({"from": "D", "to": "end"})
    return {"tasks": tasks, "flows": flows, **explicit}


@given(undoable(), CHOICES)
def test_whatever_ends_early_is_undone_once(document: Document, choices: list[tuple[int, int, int]]) -> None:
    keeps_the_books(document, "{}", choices)


@given(adorned(), st.sampled_from((*DATA, DUE)), CHOICES)
def test_every_construct_keeps_the_books(document: Document, data: str, choices: list[tuple[int, int, int]]) -> None:
    keeps_the_books(document, data, choices)


def keeps_the_books(document: Document, data: str, choices: list[tuple[int, int, int]]) -> None:
    """Play a case with these choices; all that must hold is checked after every step."""
    try:
        spec = parse_spec(document)
    except InvalidDocument:
        assume(False)
        raise
    assert unsupported(spec) == ()
    model = compile_spec(spec, 1, b"digest")
    step = create(
        model, c.CreateCase("default", "case", "random", 1, b"digest", b"salt", data.encode(), start=True), 10
    )
    case = step.case
    shadow = checked(None, step, model)
    now = 10
    history = [*step.events]
    for kind, which, how in choices:
        now += 1
        command = any_command(case, kind, which, how)
        before = encode_state(case)
        twin = decode_state(before)
        timer = case.timers.get(command.timer) if isinstance(command, c.FireTimer) else None
        if timer is not None and how != 1:
            now = max(now, timer.due)
        try:
            step = decide(case, model, command, now)
            assert timer is None or now >= timer.due or not step.events, "a timer fired early"
        except WorkflowError:
            assert encode_state(case) == before, f"{command} was refused and changed the case"
            continue
        assert decide(twin, model, command, now).events == step.events, "the same command decides differently"
        shadow = checked(shadow, step, model)
        history.extend(step.events)
        started_work_can_end(case, model, now)
        for recorded in step.events:
            event(type(recorded).__name__)
    if case.state not in ENDED:
        step = decide(case, model, c.CancelCase("enough"), now + 1_000)
        shadow = checked(shadow, step, model)
        history.extend(step.events)
        history.extend(all_undone(case, shadow, model, now + 1_000))
        assert case.state in ("cancelled", "failed")
    undone_once(history)


def all_undone(case: Case, shadow: Case, model: Model, now: int) -> Iterator[e.EventType]:
    """Whoever undoes something does so, until the case has ended; the events of that."""
    while case.state not in ENDED:
        command: c.Command
        if case.state == "suspended":
            command = c.ResumeCase()
        elif case.ready:
            command = c.Continue()
        elif case.incidents:
            command = c.ResolveIncident(min(case.incidents), "skip")
        elif case.open_items:
            command = c.CompleteItem(next(item_ref(activation, run) for activation, run in case.open_work()))
        else:
            now = max(now, min(timer.due for timer in case.timers.values()))
            command = c.FireTimer(min(case.timers.values(), key=lambda timer: timer.due).number)
        step = decide(case, model, command, now)
        shadow = checked(shadow, step, model)
        event("undone to the end")
        yield from step.events


def undone_once(history: list[e.EventType]) -> None:
    """What is undone was completed, in the same net, and nothing is undone twice; in every net the newest is first."""
    remembered: dict[int, list[tuple[str, int, int, str]]] = {}
    for recorded in history:
        if isinstance(recorded, e.CompletionRemembered):
            done = (recorded.task, recorded.activation, recorded.instance, recorded.undo)
            remembered.setdefault(recorded.net, []).append(done)
        elif isinstance(recorded, e.CompensationBegun):
            undone = (recorded.of, recorded.of_activation, recorded.of_instance, recorded.task)
            assert remembered[recorded.net].pop() == undone
        elif isinstance(recorded, e.NetCancelled):
            assert not remembered.get(recorded.net), "a net was cancelled before everything in it was undone"
        elif isinstance(recorded, e.NetCompleted | e.CompletionsForgotten):
            remembered.pop(recorded.net, None)
