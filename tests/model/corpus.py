"""Workflow documents, good and bad. A bad one lists every problem as (path, code), in the order of reading."""

from __future__ import annotations

from dataclasses import dataclass

VALID: dict[str, str] = {
    "empty lists": '{"id": "workflow-123", "name": "Empty", "tasks": [], "conditions": []}',
    "only an id": "id: x",
    "nulls everywhere": "{id: x, name: null, tasks: {a: null}, conditions: null, flows: null, nets: null}",
    "number as id": "{id: 7, tasks: {1: {}}, flows: [{from: start, to: 1}, {from: 1, to: end}]}",
    "tasks as a list of texts": "{id: x, tasks: [a, b], flows: [{from: start, to: a}, {from: a, to: b}]}",
    "tasks as a list of maps": "{id: x, tasks: [{id: a, required_roles: r}], conditions: [p, {id: q, name: Q}]}",
    "flows as targets": "{id: x, tasks: [a, b], flows: {start: [a, {to: b}], a: end, b: {to: end}}}",
    "named flows": "{id: x, tasks: [a], flows: {in: {from: start, to: a}, out: {from: a, to: end, when: true}}}",
    "keys of other tools": "{id: x, x-owner: me, tasks: {a: {x-position: [1, 2]}}, $schema: https://example.org/s}",
    "not latin": "{id: Überprüfung, tasks: {prüfen 審査: {name: Ж}}, flows: {start: prüfen 審査}}",
    "a choice with one bare flow": (
        "{id: x, tasks: [a, b, c], flows: [{from: start, to: a}, {from: a, to: b, when: data.n > 1}, {from: a, to: c}]}"
    ),
    "every construct": """
id: all
name: All of it
description: text
data_schema: {type: object}
on_incident: fail
termination: explicit
sections: {s: [a, b]}
conditions: {p: {name: P, description: d}}
tasks:
  a: {join: and, split: or, instances: {min: 1, max: data.n, threshold: 1, create: dynamic, rest: cancel}}
  b: {join: {partial: {need: 1, of: 2, mode: blocking}}, cancels: [a, p, a->b], completes: a, closes: [a]}
  c: {join: {partial: 1}, split: {threads: 3}, for_each: data.lines, collect: results, required_roles: [r, s]}
  d: {join: {merge: 3}, trigger: {name: paid, transient: true}, mutex: m, reads: [p, a->b], instances: 3,
      required_roles: r}
  e: {join: structured-or, timer: 5m, in: {k: data.a, n: 1, t: true, z: null}, out: {k: data.b}}
  f: {join: local-or, loop: {until: data.done}, net: n, timeout: 1h30m, on_timeout: end, on_error: a}
  g: {workflow: other@3, deadline: "2030-01-01T00:00:00Z", compensate: o, allocation: four-eyes, priority: -5}
  h: {connector: http, request: {url: "https://example.org"}, result: {r: data.body}, retry: 5, timeout: PT5M}
  i: {timer: {at: data.due}}
  j: {timer: {every: "0 8 * * 1"}, retry: {max_attempts: 2, backoff: 500ms, max_backoff: 2d, factor: 1.5}}
  k: {trigger: paid, loop: {while: "true"}, required_roles: r}
  l: {required_roles: r, instances: {until: size(data.xs) > 2, sync: false}, timeout: 2d, deadline: data.due}
  m: {timer: {after: data.wait}}
  n: {required_roles: r, retry: {backoff: 0}}
  o: {required_roles: r, retry: 3}
flows:
  - {from: start, to: a}
  - {from: a, to: b, when: data.x > 1}
  - {from: a, to: c, when: data.x > 2}
  - {from: a, to: d, default: true}
  - {from: c, to: b}
  - {from: d, to: p}
  - {from: b, to: c}
  - {from: p, to: e}
  - {from: c, to: e}
  - {from: f, to: end}
  - {from: f, to: a}
nets:
  n: {tasks: {again: {net: n}, stop: {}}, flows: {start: [again, stop], again: end, stop: end}, description: text}
""",
    "nets as a list": "{id: x, tasks: {a: {net: n}}, nets: [{name: n, tasks: [b]}, {id: m}]}",
}


@dataclass(frozen=True, slots=True)
class Bad:
    """A document with all its problems. `shape` tells that its JSON Schema refuses it too."""

    name: str
    text: str
    problems: tuple[tuple[str, str], ...]
    shape: bool = True


def _bad(name: str, text: str, *problems: str, shape: bool = True) -> Bad:
    pairs = [tuple(problem.rsplit(" ", 1)) for problem in problems]
    return Bad(name, text, tuple((path if path != "-" else "", code) for path, code in pairs), shape)


INVALID: tuple[Bad, ...] = (
    _bad("a list", "[]", "- type"),
    _bad("nothing", "", "- type"),
    _bad("no id", "name: x", "id missing"),
    _bad("empty id", "id: ' '", "id id"),
    _bad("long id", f"id: {'x' * 257}", "id id"),
    _bad("id with many bytes", f"id: {'é' * 200}", "id id", shape=False),
    _bad("id with a control character", 'id: "a\\tb"', "id id"),
    _bad("space at the end of an id", "{id: x, tasks: ['a ']}", "tasks[0].id id"),
    _bad(
        "wrong kinds",
        "{id: x, tasks: 5, flows: t, nets: 3, sections: []}",
        "tasks type",
        "flows type",
        "sections type",
        "nets type",
    ),
    _bad(
        "unknown keys",
        "{id: x, taskz: {}, tasks: {a: {role: r}}, flows: [{from: start, to: a, if: x}]}",
        "taskz unknown_key",
        "tasks.a.role unknown_key",
        "flows[0].if unknown_key",
    ),
    _bad(
        "reserved", "{id: x, tasks: [start], conditions: {end: {}}}", "tasks.start reserved", "conditions.end reserved"
    ),
    _bad(
        "duplicates",
        "{id: x, tasks: [a, a, b], conditions: [p, p, b]}",
        "tasks.a duplicate",
        "conditions.p duplicate",
        "conditions.b duplicate",
        shape=False,
    ),
    _bad("two ids", "{id: x, tasks: {a: {id: b}}}", "tasks.a.id duplicate", shape=False),
    _bad("a list without ids", "{id: x, tasks: [{}], nets: [{}]}", "tasks[0].id missing", "nets[0].name missing"),
    _bad(
        "half flows",
        "{id: x, tasks: [a], flows: [{from: a}, {to: a}, {}, start]}",
        "flows[0].to missing",
        "flows[1].from missing",
        "flows[2].from missing",
        "flows[2].to missing",
        "flows[3] type",
    ),
    _bad(
        "flows into nothing",
        "{id: x, tasks: [approve], flows: [{from: start, to: approv}, {from: zz, to: end}]}",
        "flows[0].to unknown_element",
        "flows[1].from unknown_element",
        shape=False,
    ),
    _bad(
        "flows that no net has",
        "{id: x, tasks: [a], conditions: [p, q], flows: [{from: a, to: start}, {from: end, to: a}, {from: p, to: q},"
        " {from: start, to: p}, {from: a, to: p}, {from: a, to: p}]}",
        "flows[0].to flow_into_start",
        "flows[1].from flow_out_of_end",
        "flows[2] condition_to_condition",
        "flows[3] condition_to_condition",
        "flows[5] duplicate_flow",
        shape=False,
    ),
    _bad(
        "guards behind a condition",
        "{id: x, tasks: [a, b], conditions: [p],"
        " flows: [{from: p, to: a, when: data.x}, {from: p, to: b, default: true}]}",
        "flows[0] guarded_condition",
        "flows[1] guarded_condition",
        shape=False,
    ),
    _bad(
        "names that clash",
        "{id: x, tasks: [a, b->c, a->b, c], flows: [{from: a, to: b->c}, {from: a->b, to: c}, {from: a, to: c}]}",
        "flows[1] ambiguous_name",
        shape=False,
    ),
    _bad(
        "guards on an and",
        "{id: x, tasks: {a: {split: and}, b: {}}, flows: [{from: a, to: b, when: data.x}, {from: a, to: end}]}",
        "flows[0] guard_without_choice",
        shape=False,
    ),
    _bad(
        "two bare flows of a choice",
        "{id: x, tasks: [a, b, c], flows: [{from: a, to: b}, {from: a, to: c}, {from: a, to: end, when: data.x}]}",
        "flows[0] unguarded_flow",
        "flows[1] unguarded_flow",
        shape=False,
    ),
    _bad(
        "two defaults, and a default with a guard",
        "{id: x, tasks: [a, b, c], flows: [{from: a, to: b, default: true}, {from: a, to: c, default: true},"
        " {from: b, to: c, when: data.x, default: true}]}",
        "flows[2] default_with_guard",
        "flows[1] two_defaults",
    ),
    _bad(
        "guards that are none",
        "{id: x, tasks: [a, b], flows: [{from: a, to: b, when: data.}, {from: b, to: a, when: 1 + 1},"
        " {from: b, to: end, when: amount > 1}, {from: start, to: a, when: 5}]}",
        "flows[0].when invalid_expression",
        "flows[1].when expression_type",
        "flows[2].when invalid_expression",
        "flows[3].when type",
        "flows[3] guarded_condition",
    ),
    _bad(
        "mappings that are none",
        "{id: x, tasks: {a: {in: [x], out: {k: {}, l: 'data.', '': '1'}}}}",
        "tasks.a.in type",
        "tasks.a.out. key",
        "tasks.a.out.k type",
        "tasks.a.out.l invalid_expression",
    ),
    _bad(
        "joins",
        "{id: x, tasks: {a: {join: AND}, b: {join: {partial: {need: 3, of: 2}}}, c: {join: {merge: 0}},"
        " d: {join: {partial: {mode: x}}}, e: {join: merge}}}",
        "tasks.a.join unknown_value",
        "tasks.c.join.merge.count number",
        "tasks.d.join.partial.need missing",
        "tasks.d.join.partial.mode unknown_value",
        "tasks.e.join.merge.count missing",
        "tasks.b.join.partial.of bounds",
        "tasks.b.join.partial.need bounds",
        "tasks.d.join.partial.need bounds",
    ),
    _bad(
        "a structured merge without its or-split",
        "{id: x, tasks: {a: {}, b: {}, c: {}, j: {join: structured-or}, k: {join: structured-or}, o: {split: or},"
        " m: {join: structured-or}}, conditions: [p],"
        " flows: {start: [a], a: [b, c], b: j, c: j, j: [k, o], o: [{to: p, when: data.y}, {to: m, default: true}],"
        " p: m}, nets: {n: {tasks: {d: {join: structured-or}}}, q: {tasks: {e: {}, f: {}, g: {join: structured-or}},"
        " flows: {start: [e, f], e: g, f: g}}}}",
        "tasks.j.join no_matching_split",
        "tasks.k.join no_matching_split",
        "nets.n.tasks.d.join no_matching_split",
        "nets.q.tasks.g.join no_matching_split",
        shape=False,
    ),
    _bad(
        "a local merge behind a loop",
        "{id: x, tasks: {a: {split: or}, b: {}, c: {}, d: {}, j: {join: local-or}, k: {join: local-or}},"
        " flows: {start: a, a: [{to: b, when: data.y}, {to: c, when: data.z}],"
        " b: [{to: d, when: data.y}, {to: j, default: true}], d: b, c: j,"
        " j: [{to: a, when: data.y}, {to: k, default: true}], k: end}}",
        "tasks.j.join loop_before_merge",
        "tasks.k.join loop_before_merge",
        shape=False,
    ),
    _bad(
        "a local merge in a knot",
        "{id: x, tasks: {a: {split: or}, b: {}, c: {}, j: {join: local-or}},"
        " flows: {start: a, a: [{to: b, when: data.y}, {to: c, when: data.z}],"
        " b: [{to: c, when: data.y}, {to: j, default: true}], c: [{to: b, when: data.y}, {to: j, default: true}]}}",
        "tasks.j.join loop_before_merge",
        shape=False,
    ),
    _bad(
        "a local merge behind conditions where ways part or meet",
        "{id: x, tasks: {a: {split: or}, b: {}, c: {}, d: {}, j: {join: local-or}}, conditions: [p, q],"
        " flows: {start: a, a: [{to: p, when: data.y}, {to: d, when: data.z}], p: [b, c], b: q, c: q, q: j, d: j}}",
        "tasks.j.join condition_before_merge",
        "tasks.j.join condition_before_merge",
        shape=False,
    ),
    _bad(
        "splits",
        "{id: x, tasks: {a: {split: all}, b: {split: {threads: x}}, c: {split: threads}}}",
        "tasks.a.split unknown_value",
        "tasks.b.split.threads number",
        "tasks.c.split.threads missing",
    ),
    _bad(
        "instances",
        "{id: x, tasks: {a: {instances: {min: 3, max: 2}}, b: {instances: {max: 2, threshold: 3}},"
        " c: {instances: {threshold: 1, until: 'true'}}, d: {instances: []}, e: {collect: k},"
        " f: {for_each: data.xs, instances: 3}, g: {for_each: [1]}}}",
        "tasks.a.instances.min bounds",
        "tasks.b.instances.threshold bounds",
        "tasks.c.instances conflict",
        "tasks.d.instances type",
        "tasks.e.collect conflict",
        "tasks.f.instances conflict",
        "tasks.g.for_each type",
    ),
    _bad(
        "carried out twice",
        "{id: x, tasks: {a: {required_roles: r, connector: http}, b: {required_roles: r, request: {}}}}",
        "tasks.a conflict",
        "tasks.b.request conflict",
        shape=False,
    ),
    _bad(
        "times",
        "{id: x, tasks: {a: {timeout: 3y}, b: {timeout: 0}, c: {timeout: P1M}, d: {timer: {}},"
        " e: {deadline: 2030-01-01}, f: {timer: 5 minutes}, g: {on_timeout: end}}}",
        "tasks.a.timeout duration",
        "tasks.b.timeout duration",
        "tasks.c.timeout duration",
        "tasks.d.timer conflict",
        "tasks.e.deadline time",
        "tasks.f.timer.after duration",
        "tasks.g.on_timeout conflict",
        "tasks.g.on_timeout no_flow",
    ),
    _bad(
        "time where nothing takes any",
        "{id: x, tasks: {a: {timer: 5m, trigger: t}, b: {timer: 5m, instances: 2},"
        " c: {timer: 5m, loop: {until: data.d}}, d: {timer: 5m, timeout: 5m}, e: {deadline: data.due},"
        " f: {required_roles: r, timeout: 5m, on_timeout: e},"
        " g: {timer: 5m, for_each: data.xs}}, flows: {start: [a, b, c, d, e, f, g], e: [a, b]}}",
        "tasks.a.trigger conflict",
        "tasks.b.instances conflict",
        "tasks.c.loop conflict",
        "tasks.d.timeout no_work",
        "tasks.e.deadline no_work",
        "tasks.f.on_timeout no_flow",
        "tasks.g.for_each conflict",
        shape=False,
    ),
    _bad(
        "other settings",
        "{id: x, tasks: {a: {loop: {}, priority: high, retry: 0, trigger: {}, allocation: dice,"
        " workflow: a@0, connector: [], required_roles: [r, r]}}}",
        "tasks.a conflict",
        "tasks.a.connector type",
        "tasks.a.trigger.name missing",
        "tasks.a.loop missing",
        "tasks.a.workflow version",
        "tasks.a.required_roles[1] duplicate",
        "tasks.a.retry.max_attempts number",
        "tasks.a.allocation unknown_value",
        "tasks.a.priority number",
    ),
    _bad(
        "references into nothing",
        "{id: x, tasks: {a: {cancels: [z], completes: z, closes: [z, a], reads: [a->z],"
        " net: z}, b: {on_error: z, compensate: z}}, sections: {s: [z]}}",
        "tasks.a.cancels[0] unknown_element",
        "tasks.a.reads[0] unknown_element",
        "tasks.a.completes[0] unknown_element",
        "tasks.a.closes[0] unknown_element",
        "tasks.a.closes[1] not_dynamic",
        "tasks.a.net unknown_element",
        "tasks.b.on_error unknown_element",
        "tasks.b.compensate unknown_element",
        "sections.s[0] unknown_element",
        shape=False,
    ),
    _bad(
        "problems in a sub-net",
        "{id: x, nets: {n: {tasks: {a: {split: x}}, flows: [{from: a, to: b}]}}}",
        "nets.n.tasks.a.split unknown_value",
        "nets.n.flows[0].to unknown_element",
    ),
    _bad(
        "recursion without an exit",
        "{id: x, nets: {n: {tasks: {a: {net: m}}, flows: {start: a, a: end}},"
        " m: {tasks: {b: {net: n}, c: {}}, flows: {start: b, b: c, c: end}}}}",
        "nets.m no_terminating_path",
        "nets.n no_terminating_path",
        shape=False,
    ),
    _bad("data schema that is none", "{id: x, data_schema: {type: thing}}", "data_schema data_schema", shape=False),
    _bad(
        "data schema elsewhere",
        "{id: x, data_schema: {$ref: 'http://127.0.0.1:1/s'}}",
        "data_schema data_schema",
        shape=False,
    ),
    _bad(
        "values",
        "{id: x, on_incident: maybe, termination: Explicit, name: [n], data_schema: []}",
        "termination unknown_value",
        "name type",
        "data_schema type",
        "on_incident unknown_value",
    ),
)
