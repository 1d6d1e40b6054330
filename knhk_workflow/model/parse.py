"""A native workflow document into a Spec, with every problem reported at once.

The document is what `strict_json` or `strict_yaml` yields. Shapes are lenient where nothing is lost: tasks, conditions,
flows and nets may be lists (with `id`, or `from` and `to`) or maps; one role stands for a list of one; null is absent;
keys that begin with `x-` belong to other tools. Everything else that is not known is refused, with the nearest name.

A map has no order, hence maps are read sorted by key. Only the order of a list of flows means something: a choice
tries its guards in that order. So equal canonical documents are equal workflows.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import math
import re
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from knhk_workflow.errors import InvalidDocument, InvalidInput
from knhk_workflow.model.document import DEPTH_MAX, NODES_MAX
from knhk_workflow.model.fields import (
    COUNT_MAX,
    Fields,
    Problems,
    duration,
    encodable,
    expression,
    identifier,
    instant,
    joined,
    shown,
)
from knhk_workflow.model.recurrence import RecurrenceInvalid, recurrence
from knhk_workflow.model.request import RequestInvalid, compile_request
from knhk_workflow.model.schema import compiled_schema
from knhk_workflow.model.spec import (
    END,
    ROOT,
    START,
    Condition,
    Flow,
    Instances,
    Join,
    JoinKind,
    Loop,
    Net,
    Retry,
    Spec,
    Split,
    SplitKind,
    Task,
    Timer,
    Trigger,
)
from knhk_workflow.model.structure import Places, check_nets
from knhk_workflow.model.structure import findings as findings
from knhk_workflow.model.structure import unsupported as unsupported

NETS_MAX: Final = 256  # as deep as sub-nets may nest; more is several workflows
TASKS_MAX: Final = 10_000  # in all nets; verification and compilation stay below a second
FLOWS_MAX: Final = 50_000  # five for each task
CONDITIONS_MAX: Final = 10_000
SENSITIVE_MAX: Final = 1_000  # names of data fields; every history is read with them in hand
DIGEST_BYTES: Final = 32
PRIORITY_MAX: Final = 1_000_000
_MESSAGE_MAX: Final = 300  # characters of another library's message

DEFAULT_CONNECTOR: Final = "default"  # in a document: whichever connector is the default one when the call is made
CALL_RETRY: Final = Retry(5, 1.0, 60.0, 2.0)
"""Of a connector's task that says nothing else: 1, 2, 4 and 8 seconds outlast a restart of what is called."""

_NET_KEYS: Final = ("tasks", "conditions", "flows", "termination", "sections", "description")
_DOCUMENT_KEYS: Final = ("id", "name", "data_schema", "nets", "on_incident", "sensitive", "$schema", *_NET_KEYS)
_FLOW_KEYS: Final = ("from", "to", "when", "default", "id", "name", "description")
_CONDITION_KEYS: Final = ("id", "name", "description")
_TASK_KEYS: Final = (
    "id",
    "name",
    "description",
    "join",
    "split",
    "instances",
    "for_each",
    "collect",
    "cancels",
    "completes",
    "closes",
    "trigger",
    "timer",
    "mutex",
    "reads",
    "loop",
    "net",
    "workflow",
    "in",
    "out",
    "required_roles",
    "connector",
    "request",
    "result",
    "retry",
    "timeout",
    "deadline",
    "on_error",
    "on_timeout",
    "compensate",
    "allocation",
    "priority",
)
_ALLOCATIONS: Final = (
    "offer",
    "four-eyes",
    "chained",
    "round-robin",
    "shortest-queue",
    "role-based",
    "capability-based",
)
_JOINS: Final[tuple[JoinKind, ...]] = ("and", "xor", "or", "structured-or", "local-or", "partial", "merge")
_SPLITS: Final[tuple[SplitKind, ...]] = ("and", "xor", "or", "threads")


def parse_spec(document: object) -> Spec:
    """The workflow that `document` describes. Raises InvalidDocument with all problems."""
    problems = Problems()
    if _plain_json(problems, document) and isinstance(document, dict):
        spec, places = _spec(problems, document)
        if spec is not None:
            check_nets(problems, spec, places)
            if not problems:
                return spec
    elif not problems:
        hint = "for example {id: hello, tasks: {greet: {}}, flows: [{from: start, to: greet}, {from: greet, to: end}]}"
        problems.add("", "type", f"a workflow document must be a map, this is {shown(document)}", hint)
    found = problems.all()
    count = f"{len(found)} problems, first: " if len(found) > 1 else ""
    raise InvalidDocument(f"the workflow document is not valid: {count}{found[0]}", found)


def canonical(document: object) -> bytes:
    """The document as compact JSON with sorted keys: what is stored and hashed."""
    return msgspec.json.encode(document, order="sorted")


def spec_digest(canonical_document: bytes) -> bytes:
    """The identity of a workflow's content: BLAKE2b of its canonical document."""
    return hashlib.blake2b(canonical_document, digest_size=DIGEST_BYTES).digest()


@functools.cache
def document_schema() -> bytes:
    """The JSON Schema (2020-12) of the document, as JSON text."""
    return importlib.resources.files("knhk_workflow.model").joinpath("schema.json").read_bytes()


def _plain_json(problems: Problems, document: object) -> bool:
    """Whether `document` holds JSON values only, within limits, and never itself."""
    level: list[tuple[str, object]] = [("", document)]
    nodes = 0
    for _ in range(DEPTH_MAX + 1):
        below: list[tuple[str, object]] = []
        for path, value in level:
            if isinstance(value, dict):
                for key, element in value.items():
                    if not isinstance(key, str) or not encodable(key):
                        problems.add(path, "key", f"has the key {key!r}; keys are texts")
                        return False
                    below.append((joined(path, key), element))
            elif isinstance(value, list):
                below.extend((f"{path}[{index}]", element) for index, element in enumerate(value))
            elif isinstance(value, str):
                if not encodable(value):
                    problems.add(path, "text", "holds half of a surrogate pair")
                    return False
            elif isinstance(value, float) and not math.isfinite(value):
                problems.add(path, "number", f"{value} is not a JSON number")
                return False
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                problems.add(path, "number", "an integer here does not fit into 64 bits", "write it as a text")
                return False
            elif value is not None and not isinstance(value, int | float):
                problems.add(path, "type", f"{type(value).__name__} is not a JSON value")
                return False
        nodes += len(below)
        if nodes > NODES_MAX:
            problems.add("", "too_large", f"has more than {NODES_MAX:,} values")
            return False
        if not below:
            return True
        level = below
    problems.add(level[0][0][:200], "depth", f"is nested deeper than {DEPTH_MAX}, or holds itself")
    return False


def _spec(problems: Problems, document: dict[str, object]) -> tuple[Spec | None, dict[str, Places]]:
    fields = Fields(problems, "", document, _DOCUMENT_KEYS)
    spec_id = fields.name("id")
    if fields.raw("id") is None:
        problems.add("id", "missing", "a workflow needs an id", "for example id: order-approval")
    places: dict[str, Places] = {}
    nets = [_net(fields, ROOT, places)]
    for path, name, body in _members(problems, "nets", fields.raw("nets"), "name"):
        if name in places:
            problems.add(path, "duplicate", f"there are two nets named {name!r}")
        elif name is not None:
            nets.append(_net(Fields(problems, path, body, (*_NET_KEYS, "id", "name")), name, places))
    _limit(problems, "nets", "nets", len(nets) - 1, NETS_MAX)
    _limit(problems, "tasks", "tasks", sum(len(net.tasks) for net in nets), TASKS_MAX)
    _limit(problems, "flows", "flows", sum(len(net.flows) for net in nets), FLOWS_MAX)
    _limit(problems, "conditions", "conditions", sum(len(net.conditions) for net in nets), CONDITIONS_MAX)
    spec = Spec(
        id=spec_id or "",
        name=fields.text("name") or spec_id or "",
        nets=tuple(nets),
        data_schema=_data_schema(fields),
        on_incident=fields.choice("on_incident", ("keep", "fail"), "keep"),
        description=fields.text("description"),
        sensitive=fields.names("sensitive"),
    )
    _limit(problems, "sensitive", "names", len(spec.sensitive), SENSITIVE_MAX)
    fields.text("$schema")
    return spec, places


def _data_schema(fields: Fields) -> bytes:
    schema = fields.raw("data_schema")
    if schema is None:
        return b""
    if not isinstance(schema, dict):
        fields.wrong("data_schema", "a JSON Schema (a map)", "for example {type: object, required: [amount]}")
        return b""
    text = canonical(schema)
    try:
        compiled_schema(text)
    except InvalidInput as invalid:
        for problem in invalid.problems:
            message = problem.message.split("\n")[0][:_MESSAGE_MAX]
            fields.problems.add(fields.at("data_schema"), "data_schema", message, problem.hint)
        return b""
    return text


def _limit(problems: Problems, path: str, what: str, actual: int, maximum: int) -> None:
    if actual > maximum:
        problems.add(path, "too_many", f"{actual:,} {what}, the limit is {maximum:,}", "split the workflow")


def _members(
    problems: Problems, path: str, value: object, key: str = "id"
) -> Iterator[tuple[str, str | None, dict[str, object]]]:
    """Path, id and body of the members of a list or map. The id is None when it is wrong; that is noted already."""
    if value is None:
        return
    if isinstance(value, dict):
        for name in sorted(value):
            at = joined(path, name)
            body = {} if value[name] is None else value[name]
            if not isinstance(body, dict):
                problems.add(at, "type", f"must be a map, this is {shown(body)}")
                body = {}
            given = body.get(key)
            if given is not None and given != name:
                message = f"is {shown(given)}, but the map says {name!r}"
                problems.add(f"{at}.{key}", "duplicate", message, "leave it out")
            yield at, identifier(problems, at, name), body
    elif isinstance(value, list):
        for index, body in enumerate(value):
            at = f"{path}[{index}]"
            if isinstance(body, str):
                body = {key: body}
            if not isinstance(body, dict):
                problems.add(at, "type", f"must be a map with {key!r}, this is {shown(body)}")
                continue
            given = body.get(key, body.get("id"))
            if given is None:
                problems.add(f"{at}.{key}", "missing", f"needs {key!r}")
            name = None if given is None else identifier(problems, f"{at}.{key}", given)
            yield at if name is None else joined(path, name), name, body
    else:
        problems.add(path, "type", f"must be a map or a list, this is {shown(value)}")


def _net(fields: Fields, name: str, all_places: dict[str, Places]) -> Net:
    problems = fields.problems
    places = Places(fields.path)
    all_places[name] = places
    tasks: dict[str, Task] = {}
    for path, task_id, body in _members(problems, fields.at("tasks"), fields.raw("tasks")):
        if task_id is not None and task_id in tasks:
            problems.add(path, "duplicate", f"there are two tasks with the id {task_id!r}")
        task = _task(Fields(problems, path, body, _TASK_KEYS), task_id or "")
        if task_id is not None and _unreserved(problems, path, task_id):
            tasks.setdefault(task_id, task)
            if _named(body.get("split"), _SPLITS) is not None:
                places.explicit_splits.add(task_id)
    conditions: dict[str, Condition] = {}
    for path, condition_id, body in _members(problems, fields.at("conditions"), fields.raw("conditions")):
        own = Fields(problems, path, body, _CONDITION_KEYS)
        own.text("description")
        if condition_id is None or not _unreserved(problems, path, condition_id):
            continue
        if condition_id in tasks:
            problems.add(path, "duplicate", f"{condition_id!r} is a task already", "give the condition another id")
        elif condition_id in conditions:
            problems.add(path, "duplicate", f"there are two conditions with the id {condition_id!r}")
        else:
            conditions[condition_id] = Condition(condition_id, own.text("name"))
    flows = list(_flows(problems, fields.at("flows"), fields.raw("flows"), places))
    fields.text("description")
    net = Net(
        name=name,
        tasks=tuple(tasks.values()),
        conditions=tuple(conditions.values()),
        flows=tuple(flows),
        termination=fields.choice("termination", ("implicit", "explicit"), "implicit"),
        sections=_sections(fields),
    )
    return _with_splits(problems, net, places)


def _unreserved(problems: Problems, path: str, name: str) -> bool:
    if name in (START, END):
        problems.add(path, "reserved", f"{name!r} is implied in every net", "leave it out or choose another id")
        return False
    return True


def _sections(fields: Fields) -> tuple[tuple[str, tuple[str, ...]], ...]:
    value = fields.raw("sections")
    if value is None:
        return ()
    if not isinstance(value, dict):
        fields.wrong("sections", "a map of names to lists of tasks")
        return ()
    own = Fields(fields.problems, fields.at("sections"), value, value)
    return tuple((name, own.names(name)) for name in sorted(value))


# ------------------------------------------------------------------------------------------------------------ flows


def _flows(problems: Problems, path: str, value: object, places: Places) -> Iterator[Flow]:
    for at, body in _flow_bodies(problems, path, value):
        fields = Fields(problems, at, body, _FLOW_KEYS)
        ends: list[str | None] = []
        for key in ("from", "to"):
            if fields.raw(key) is None:
                hint = "for example {from: start, to: approve}"
                problems.add(fields.at(key), "missing", f"a flow needs {key!r}", hint)
            ends.append(fields.name(key))
        default = fields.flag("default", False)
        when = fields.condition("when")
        if default and fields.raw("when") is not None:
            hint = "a default is taken when no guard holds: leave one of the two out"
            problems.add(at, "default_with_guard", "a flow is either guarded or the default", hint)
        source, target = ends
        if source is not None and target is not None:
            places.flows.append(at)
            places.guarded.append(fields.raw("when") is not None)
            yield Flow(source, target, when, default)


def _flow_bodies(problems: Problems, path: str, value: object) -> Iterator[tuple[str, dict[str, object]]]:
    """A list of flows; or a map of names to flows, or of sources to a target, several, or a flow without `from`."""
    if isinstance(value, list):
        for index, body in enumerate(value):
            if isinstance(body, dict):
                yield f"{path}[{index}]", body
            else:
                problems.add(f"{path}[{index}]", "type", f"must be a map with from and to, this is {shown(body)}")
    elif isinstance(value, dict):
        for key in sorted(value):
            at = joined(path, key)
            several = value[key] if isinstance(value[key], list) else [value[key]]
            for index, body in enumerate(several):
                own = f"{at}[{index}]" if isinstance(value[key], list) else at
                if isinstance(body, str):
                    yield own, {"from": key, "to": body}
                elif isinstance(body, dict):
                    yield own, body if "from" in body else {"from": key, **body}
                else:
                    problems.add(own, "type", f"must name a target or be a map with to, this is {shown(body)}")
    elif value is not None:
        problems.add(path, "type", f"must be a list of flows, this is {shown(value)}", "for example - {from: a, to: b}")


def _with_splits(problems: Problems, net: Net, places: Places) -> Net:
    """Infers xor where flows are guarded, and the default where exactly one flow of a choice is not."""
    outgoing: dict[str, list[int]] = {}
    for index, flow in enumerate(net.flows):
        outgoing.setdefault(flow.source, []).append(index)
    flows = list(net.flows)
    tasks: list[Task] = []
    for task in net.tasks:
        mine = outgoing.get(task.id, [])
        chosen = [index for index in mine if places.guarded[index] or flows[index].default]
        explicit = task.id in places.explicit_splits
        if chosen and not explicit:
            task = msgspec.structs.replace(task, split=Split("xor"))
        if chosen and task.split.kind in ("and", "threads"):
            for index in chosen:
                hint = "leave split out to have a choice, or use split: or"
                message = f"a guard or default has no meaning with split: {task.split.kind}, which takes every flow"
                problems.add(places.flows[index], "guard_without_choice", message, hint)
        if task.split.kind in ("xor", "or"):
            _check_choice(problems, task, mine, flows, places)
        tasks.append(task)
    return msgspec.structs.replace(net, tasks=tuple(tasks), flows=tuple(flows))


def _check_choice(problems: Problems, task: Task, mine: list[int], flows: list[Flow], places: Places) -> None:
    defaults = [index for index in mine if flows[index].default]
    for index in defaults[1:]:
        first = places.flows[defaults[0]]
        problems.add(places.flows[index], "two_defaults", f"{task.id!r} has a default flow already ({first})")
    bare = [index for index in mine if not places.guarded[index] and not flows[index].default]
    if len(mine) > 1 and len(bare) == 1 and not defaults:
        flows[bare[0]] = msgspec.structs.replace(flows[bare[0]], default=True)
    elif len(mine) > 1:
        for index in bare:
            message = f"this flow out of {task.id!r} has neither a guard nor is it the default"
            hint = "add when: ..., or default: true to exactly one flow"
            problems.add(places.flows[index], "unguarded_flow", message, hint)


# ------------------------------------------------------------------------------------------------------------ tasks


def _task(fields: Fields, task_id: str) -> Task:
    _check_carrier(fields)
    instances = _instances(fields)
    for_each = fields.expression("for_each", ("LIST", "LIST<DYN>", "DYN"), "a list") if _lists(fields) else None
    if instances is not None and for_each is not None and _given(fields, "instances", "min", "max", "create"):
        message = "for_each sets the number of instances"
        fields.problems.add(fields.at("instances"), "conflict", message, "leave min, max and create out")
    collect = fields.name("collect")
    if collect is not None and for_each is None and instances is None:
        fields.problems.add(fields.at("collect"), "conflict", "collects from instances, but there are none")
    if fields.raw("loop") is not None and (instances is not None or for_each is not None):
        hint = "put the instances into a sub-net, and the loop around it"
        fields.problems.add(fields.at("loop"), "conflict", "a task either loops or has several instances", hint)
    connector = _connector(fields)
    return Task(
        id=task_id,
        name=fields.text("name"),
        description=fields.text("description"),
        join=_join(fields),
        split=_split(fields),
        instances=instances,
        for_each=for_each,
        collect=collect,
        cancels=fields.names("cancels"),
        completes=fields.names("completes"),
        closes=fields.names("closes"),
        trigger=_trigger(fields),
        timer=_timer(fields),
        mutex=fields.name("mutex"),
        reads=fields.names("reads"),
        loop=_loop(fields),
        net=fields.name("net"),
        workflow=_workflow(fields),
        in_=fields.assignments("in"),
        out=fields.assignments("out"),
        required_roles=fields.names("required_roles"),
        connector=connector,
        request=_request(fields),
        result=fields.assignments("result"),
        retry=CALL_RETRY if connector is not None and fields.raw("retry") is None else _retry(fields),
        timeout=fields.duration("timeout"),
        deadline=_deadline(fields),
        on_error=fields.name("on_error"),
        on_timeout=fields.name("on_timeout"),
        compensate=fields.name("compensate"),
        allocation=fields.choice("allocation", ("", *_ALLOCATIONS), ""),
        priority=fields.integer("priority", 0, -PRIORITY_MAX, PRIORITY_MAX),
    )


def _check_carrier(fields: Fields) -> None:
    carriers = [key for key in ("required_roles", "connector", "net", "workflow", "timer") if fields.raw(key)]
    if len(carriers) > 1:
        message = f"a task is carried out one way, this one has {' and '.join(carriers)}"
        fields.problems.add(fields.path, "conflict", message, "make several tasks of it")
    if fields.raw("result") is not None and fields.raw("connector") is None and fields.raw("request") is None:
        fields.problems.add(fields.at("result"), "conflict", "result belongs to a connector, and there is none")
    if fields.raw("request") is not None and len(carriers) == 1 and carriers[0] != "connector":
        message = f"request belongs to a connector, and this task has {carriers[0]}"
        fields.problems.add(fields.at("request"), "conflict", message)
    if fields.raw("on_timeout") is not None and fields.raw("timeout") is None and fields.raw("deadline") is None:
        message = "says what follows a time-out, but there is neither timeout nor deadline"
        fields.problems.add(fields.at("on_timeout"), "conflict", message)


def _lists(fields: Fields) -> bool:
    """Whether for_each is a text; a list written out is not an expression, say so once."""
    value = fields.raw("for_each")
    if isinstance(value, list | dict):
        fields.wrong("for_each", "an expression that gives a list", "for example data.checks")
        return False
    return value is not None


def _given(fields: Fields, key: str, *names: str) -> bool:
    value = fields.raw(key)
    return not isinstance(value, dict) or any(value.get(name) is not None for name in names)


def _named(value: object, kinds: tuple[str, ...]) -> tuple[str, object] | None:
    """A construct written as its name, or as a map with one key: {partial: {...}}; with its settings, or None."""
    kind, inner = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (value, None)
    return (kind, inner) if isinstance(kind, str) and kind in kinds else None


def _one_of(fields: Fields, key: str, kinds: tuple[str, ...]) -> tuple[str, object] | None:
    value = fields.raw(key)
    found = _named(value, kinds)
    if found is None and value is not None:
        hint = fields.problems.nearest(value, kinds) if isinstance(value, str) else ""
        fields.wrong(key, f"one of {', '.join(kinds)}", hint, "unknown_value")
    return found


def _join(fields: Fields) -> Join:
    found = _one_of(fields, "join", _JOINS)
    if found is None:
        return Join()
    kind, inner = found
    path = fields.at("join")
    if kind == "merge":
        body = inner if isinstance(inner, dict) else {"count": inner}
        own = Fields(fields.problems, f"{path}.merge", body, ("count",))
        if own.raw("count") is None:
            own.wrong("count", "the number of threads", "for example join: {merge: 3}", "missing")
        return Join("merge", count=own.integer("count", 1, 1, COUNT_MAX))
    if kind == "partial":
        body = inner if isinstance(inner, dict) else {"need": inner}
        own = Fields(fields.problems, f"{path}.partial", body, ("need", "of", "mode"))
        if own.raw("need") is None:
            own.wrong("need", "the number of branches", "for example join: {partial: {need: 2, of: 3}}", "missing")
        need = own.count("need", 1)
        return Join(
            "partial",
            need=1 if need is None else need,
            of=own.integer("of", 0, 1, COUNT_MAX),
            mode=own.choice("mode", ("structured", "blocking", "cancelling"), "structured"),
        )
    if inner is not None:
        fields.problems.add(path, "type", f"{kind} has no settings", f"write join: {kind}")
    return Join(next(each for each in _JOINS if each == kind))


def _split(fields: Fields) -> Split:
    found = _one_of(fields, "split", _SPLITS)
    if found is None:
        return Split()
    kind, inner = found
    if kind == "threads":
        own = Fields(fields.problems, fields.at("split"), {"threads": inner}, ("threads",))
        if inner is None:
            own.wrong("threads", "the number of threads", "for example split: {threads: 3}", "missing")
        return Split("threads", own.integer("threads", 1, 1, COUNT_MAX))
    if inner is not None:
        fields.problems.add(fields.at("split"), "type", f"{kind} has no settings", f"write split: {kind}")
    return Split("and" if kind == "and" else "xor" if kind == "xor" else "or")


def _instances(fields: Fields) -> Instances | None:
    value = fields.raw("instances")
    if value is None:
        return None
    if isinstance(value, int | str) and not isinstance(value, bool):
        number = fields.count("instances", 0)
        return Instances(min=1 if number is None else number, max=number)
    if not isinstance(value, dict):
        fields.wrong("instances", "a number or a map", "for example instances: {min: 2, max: 5, create: dynamic}")
        return None
    known = ("min", "max", "threshold", "until", "create", "rest", "sync", "sequential")
    own = Fields(fields.problems, fields.at("instances"), value, known)
    low, high, enough = own.count("min", 0), own.count("max", 1), own.count("threshold", 1)
    creation: Literal["static", "dynamic"] = own.choice("create", ("static", "dynamic"), "static")
    if isinstance(high, int) and isinstance(low, int) and low > high:
        own.problems.add(own.at("min"), "bounds", f"is {low}, more than max, which is {high}")
    most = high if high is not None else low if creation == "static" else None
    if isinstance(enough, int) and isinstance(most, int) and enough > most:
        own.problems.add(own.at("threshold"), "bounds", f"is {enough}, but there are at most {most} instances")
    if own.raw("threshold") is not None and own.raw("until") is not None:
        own.problems.add(own.path, "conflict", "has threshold and until", "keep one of them")
    return Instances(
        min=1 if low is None else low,
        max=high,
        threshold=enough,
        until=own.condition("until"),
        create=creation,
        rest=own.choice("rest", ("continue", "cancel"), "continue"),
        sync=own.flag("sync", True),
        sequential=own.flag("sequential", False),
    )


def _trigger(fields: Fields) -> Trigger | None:
    value = fields.raw("trigger")
    if value is None:
        return None
    body = value if isinstance(value, dict) else {"name": value}
    own = Fields(fields.problems, fields.at("trigger"), body, ("name", "mode", "transient", "persistent"))
    if own.raw("name") is None:
        own.wrong("name", "the name of the trigger", "for example trigger: {name: paid, mode: persistent}", "missing")
    mode: Literal["persistent", "transient"] = own.choice("mode", ("persistent", "transient"), "persistent")
    if own.raw("mode") is None and (own.flag("transient", False) or not own.flag("persistent", True)):
        mode = "transient"
    name = own.name("name")
    return None if name is None else Trigger(name, mode)


def _timer(fields: Fields) -> Timer | None:
    value = fields.raw("timer")
    if value is None:
        return None
    body = value if isinstance(value, dict) else {"after": value}
    own = Fields(fields.problems, fields.at("timer"), body, ("after", "at", "every", "time_zone"))
    given = [key for key in ("after", "at", "every") if own.raw(key) is not None]
    if own.raw("time_zone") is not None and given != ["every"]:
        own.problems.add(own.at("time_zone"), "conflict", "is that of a cron line in `every`", "leave it out")
    if len(given) != 1:
        own.problems.add(own.path, "conflict", "needs exactly one of after, at and every", "for example timer: 5m")
        return None
    if given == ["every"]:
        return _every(own)
    if given == ["at"]:
        return Timer(at=_time(own, "at"))
    after = own.raw("after")
    seconds = duration(after)
    if seconds is not None:
        return Timer(after=seconds)
    if not isinstance(after, str) or after[:1].isdigit():
        own.wrong("after", "a duration or an expression", "for example 5m, PT5M or data.wait_seconds", "duration")
        return None
    return Timer(after=own.expression("after"))


def _every(fields: Fields) -> Timer | None:
    """A recurrence. How often it comes is said by the flows that lead back to the task, not by it."""
    text, zone = fields.text("every"), fields.text("time_zone")
    try:
        found = recurrence(text, zone)
    except RecurrenceInvalid as invalid:
        fields.problems.add(fields.at(invalid.key), "recurrence", invalid.problem, invalid.hint)
        return None
    if found.count:
        message = "a task waits for the next occurrence, however often flows lead back to it"
        fields.problems.add(fields.at("every"), "recurrence", message, "write R/..., and let a guard end the loop")
        return None
    return Timer(every=text, time_zone=zone)


def _time(fields: Fields, key: str) -> str | None:
    """RFC 3339, or an expression that gives it."""
    value = fields.raw(key)
    if value is None:
        return None
    if not isinstance(value, str):
        fields.wrong(key, "a time or an expression", 'for example "2030-01-31T12:00:00Z" or data.due')
        return None
    if instant(value):
        return value
    if value[:1].isdigit():
        fields.wrong(key, "a time with its offset", 'for example "2030-01-31T12:00:00Z"', "time")
        return None
    return expression(fields.problems, fields.at(key), value)


def _deadline(fields: Fields) -> str | None:
    return _time(fields, "deadline")


def _loop(fields: Fields) -> Loop | None:
    value = fields.raw("loop")
    if value is None:
        return None
    if not isinstance(value, dict):
        fields.wrong("loop", "a map with while or until", "for example loop: {until: data.done}")
        return None
    own = Fields(fields.problems, fields.at("loop"), value, ("while", "until"))
    if own.raw("while") is None and own.raw("until") is None:
        own.problems.add(own.path, "missing", "needs while or until", "for example loop: {until: data.done}")
    return Loop(own.condition("while"), own.condition("until"))


def _retry(fields: Fields) -> Retry | None:
    value = fields.raw("retry")
    if value is None:
        return None
    if not isinstance(value, dict) and not (isinstance(value, int) and not isinstance(value, bool)):
        fields.wrong("retry", "a number of attempts or a map", "for example retry: {max_attempts: 5, backoff: 2s}")
        return None
    body = value if isinstance(value, dict) else {"max_attempts": value}
    own = Fields(fields.problems, fields.at("retry"), body, ("max_attempts", "backoff", "max_backoff", "factor"))
    usual = Retry()
    at_once = own.raw("backoff") == 0 and not isinstance(own.raw("backoff"), bool)
    first = 0.0 if at_once else own.duration("backoff") or usual.backoff
    longest = own.duration("max_backoff")
    if longest is not None and longest < first:
        own.problems.add(own.at("max_backoff"), "bounds", f"is {longest:g} s, less than backoff, which is {first:g} s")
    return Retry(
        own.integer("max_attempts", usual.max_attempts, 1, 1_000),
        first,
        longest if longest is not None else max(usual.max_backoff, first),
        own.decimal("factor", usual.factor, 1.0, 100.0),
    )


_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")


def _workflow(fields: Fields) -> str | None:
    called = fields.name("workflow")
    if called is None:
        return None
    name, at, version = called.rpartition("@")
    if at and not (name and _VERSION.fullmatch(version)):
        fields.wrong("workflow", "id or id@version", "for example claims@3", "version")
        return None
    return called


def _connector(fields: Fields) -> str | None:
    """The connector that does it. A task with a `request` and without a connector is for the default one."""
    if fields.raw("connector") is None:
        return DEFAULT_CONNECTOR if fields.raw("request") is not None else None
    return fields.name("connector")


def _request(fields: Fields) -> bytes:
    value = fields.raw("request")
    if value is None:
        return b""
    if not isinstance(value, dict):
        fields.wrong("request", "a map of the connector's settings")
        return b""
    source = canonical(value)
    try:
        compile_request(source)
    except RequestInvalid as invalid:
        where = f"line {invalid.line}, column {invalid.column}: " if invalid.line else ""
        at = f"{fields.at('request')}.{invalid.where}"
        fields.problems.add(at, "invalid_expression", where + invalid.problem, invalid.hint)
        return b""
    return source
