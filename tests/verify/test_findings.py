"""Each finding by a net that has it: code, place, severity, what its hint proposes, and the trace."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from knhk_workflow.errors import Problem
from knhk_workflow.model.document import strict_yaml
from knhk_workflow.model.net import compile_spec
from knhk_workflow.model.parse import parse_spec
from knhk_workflow.model.verify import Verification, VerifyBudget, verify


def verified(text: str, budget: VerifyBudget | None = None) -> Verification:
    model = compile_spec(parse_spec(strict_yaml("id: case\n" + text)), 1, b"")
    return verify(model.spec, model.nets, budget=budget or VerifyBudget())


def only(found: Verification, code: str) -> Problem:
    problems = [problem for problem in found.findings if problem.code == code]
    assert len(problems) == 1, found
    return problems[0]


@dataclass(frozen=True)
class Row:
    """A net and the finding that it must have."""

    net: str
    path: str
    severity: str
    hint: str
    trace: tuple[str, ...] = ()
    verdict: str = ""


CHOICE_THEN_AND = """
tasks: {A: {}, B: {}, C: {}, D: {join: and}}
flows:
  - {from: start, to: A}
  - {from: A, to: B, when: data.x}
  - {from: A, to: C, default: true}
  - {from: B, to: D}
  - {from: C, to: D}
  - {from: D, to: end}
"""

ROWS: dict[str, Row] = {
    "deadlock": Row(
        CHOICE_THEN_AND,
        "tasks.D.join",
        "error",
        "'A' does not take every branch, but 'D' waits for all of them: use join: or (or xor) at 'D', or split: and "
        "at 'A'; guards were not looked at",
        ("A", "B", "left: 1 token in 'B->D'; 'D' still waits for 'C->D'"),
        "unsound",
    ),
    "lock_deadlock": Row(
        """
tasks: {A: {}, B1: {}, B2: {join: and}, D: {}, E: {join: and}}
sections: {s: [B1, B2, D]}
flows: {start: A, A: [B1, D], B1: B2, D: [B2, E], B2: E, E: end}
""",
        "tasks.D",
        "error",
        "let the section be left without anything that waits for it",
        ("A", "B1", "left: 1 token in 'A->D', 1 token in 'B1->B2'; 'D' waits for section s"),
        "unsound",
    ),
    "end_not_reached": Row(
        """
termination: explicit
conditions: [aside]
tasks: {A: {}, B: {}}
flows:
  - {from: start, to: A}
  - {from: A, to: B, when: data.x}
  - {from: A, to: aside, default: true}
  - {from: B, to: end}
""",
        "termination",
        "error",
        "lead every way to `end`, or use termination: implicit; guards were not looked at",
        ("A", "left: no token, and `end` is not marked"),
        "unsound",
    ),
    "livelock": Row(
        "tasks: {A: {}, B: {}}\nflows: {start: A, A: B, B: A}\n",
        "tasks.A",
        "error",
        "give the loop a way out",
        ("left: 1 token in 'start'; from here no end can be reached",),
        "unsound",
    ),
    "dead_task": Row(
        """
termination: explicit
tasks: {A: {}, B: {join: and}}
flows:
  - {from: start, to: A}
  - {from: A, to: end}
  - {from: A, to: B}
  - {from: B, to: end}
""",
        "tasks.B",
        "error",
        "remove it or lead another flow to it",
        ("left: whatever happens, 'B' does not get the tokens it needs",),
        "unsound",
    ),
    "cancels_nothing": Row(
        "tasks: {A: {}, B: {}, C: {cancels: [A, B]}}\nflows: {start: A, A: [B, C], B: end, C: end}\n",
        "tasks.C.cancels[0]",
        "warning",
        "leave it out of cancels",
        (),
        "sound",
    ),
    "immutable_or_join": Row(
        "tasks: {A: {}, B: {}, C: {}, D: {join: or}}\nflows: {start: A, A: [B, C], B: D, C: D, D: end}\n",
        "tasks.D.join",
        "warning",
        "use join: and, which is cheaper",
        (),
        "sound",
    ),
    "or_joins_in_cycle": Row(
        """
tasks: {S: {}, J: {join: or}, K: {join: or}}
flows:
  - {from: start, to: S}
  - {from: S, to: J}
  - {from: S, to: K}
  - {from: J, to: K, when: data.x}
  - {from: J, to: end, default: true}
  - {from: K, to: J, when: data.x}
  - {from: K, to: end, default: true}
""",
        "tasks.J.join",
        "warning",
        "use another join for one of them",
        (),
        "unsound",
    ),
    "unsafe_place": Row(
        "tasks: {A: {split: {threads: 3}}, B: {}}\nflows: {start: A, A: B, B: end}\n",
        "tasks.B.join",
        "info",
        "fine when that is meant (patterns 8, 12, 28, 33, 41, 42)",
        (),
        "sound",
    ),
    "unsafe_merge": Row(
        "tasks: {A: {}, B: {}, C: {}, D: {}}\nflows: {start: A, A: [B, C], B: D, C: D, D: end}\n",
        "tasks.D.join",
        "info",
        "fine when that is meant (pattern 8); otherwise use join: and or join: or at 'D'",
        (),
        "sound",
    ),
    "work_removed_at_end": Row(
        "termination: explicit\ntasks: {A: {}, B: {}, C: {}}\nflows: {start: A, A: [B, C], B: end, C: end}\n",
        "termination",
        "info",
        "fine when that is meant (pattern 43)",
        (),
        "sound",
    ),
    "one_signal_assumed": Row(
        "tasks: {A: {}, T: {trigger: paid}}\nflows: {start: A, A: end, T: end}\n",
        "tasks.T.trigger",
        "info",
        "two may run side by side",
        (),
        "sound",
    ),
    "choice_without_default": Row(
        """
tasks: {A: {}, B: {}, C: {}}
flows:
  - {from: start, to: A}
  - {from: A, to: B, when: data.x}
  - {from: A, to: C, when: data.y}
  - {from: B, to: end}
  - {from: C, to: end}
""",
        "tasks.A.split",
        "info",
        "mark one flow with default: true",
        (),
        "sound",
    ),
    "merge_reentered": Row(
        """
tasks:
  A: {}
  X: {}
  Y: {}
  S: {join: xor, split: or}
  B: {}
  C: {}
  J: {join: structured-or}
flows:
  - {from: start, to: A}
  - {from: A, to: X}
  - {from: A, to: Y}
  - {from: X, to: S}
  - {from: Y, to: S}
  - {from: S, to: B, when: data.b}
  - {from: S, to: C, when: data.c}
  - {from: B, to: J}
  - {from: C, to: J}
  - {from: J, to: end}
""",
        "tasks.J.join",
        "warning",
        "use join: or, which needs no structure",
        (),
        "undecided",
    ),
}


@pytest.mark.parametrize("code", ROWS)
def test_a_finding_says_where_what_and_how_to_mend_it(code: str) -> None:
    row = ROWS[code]
    found = verified(row.net)
    problem = only(found, code)
    assert (problem.path, problem.severity) == (row.path, row.severity)
    assert row.hint in problem.hint
    assert problem.trace == row.trace
    assert found.verdict == row.verdict


def test_a_net_that_no_run_ends_is_unsound_even_when_it_grows_without_bound() -> None:
    found = verified("""
tasks: {A: {}, B: {}, C: {join: and}, D: {}}
conditions: [p, q]
flows:
  - {from: start, to: A}
  - {from: A, to: B}
  - {from: B, to: A}
  - {from: B, to: D}
  - {from: D, to: p}
  - {from: p, to: C}
  - {from: q, to: C}
  - {from: C, to: end}
termination: explicit
""")
    assert found.verdict == "unsound"
    assert only(found, "no_completion").hint


def test_a_spent_budget_is_undecided_with_its_reason() -> None:
    branches = [f"B{number}" for number in range(12)]
    text = "tasks: {A: {}, J: {join: or}, " + ", ".join(f"{name}: {{}}" for name in branches) + "}\n"
    text += f"flows: {{start: A, A: [{', '.join(branches)}], J: end, " + ", ".join(f"{b}: J" for b in branches) + "}\n"
    found = verified(text, VerifyBudget(markings=50, steps=100))
    assert found.verdict == "undecided"
    problem = only(found, "undecided")
    assert problem.severity == "warning"
    assert "steps did not suffice" in found.reason
    assert "sub-nets" in problem.hint


def test_a_lock_that_a_sub_net_needs_too_is_a_deadlock() -> None:
    found = verified("""
tasks: {A: {mutex: m, net: inner}}
flows: {start: A, A: end}
nets:
  inner: {tasks: {B: {mutex: m}}, flows: {start: B, B: end}}
""")
    assert found.verdict == "unsound"
    assert only(found, "lock_deadlock").path == "tasks.A"


def test_sub_nets_are_verified_one_by_one_and_recursion_ends() -> None:
    found = verified("""
tasks: {A: {net: level}}
flows: {start: A, A: end}
nets:
  level:
    tasks: {B: {split: xor}, R: {net: level}, L: {}, Z: {join: and}}
    flows:
      - {from: start, to: B}
      - {from: B, to: R, when: data.deeper}
      - {from: B, to: L, default: true}
      - {from: R, to: Z}
      - {from: L, to: Z}
      - {from: Z, to: end}
""")
    assert found.verdict == "unsound"
    problem = only(found, "deadlock")
    assert problem.path == "nets.level.tasks.Z.join"
    assert problem.trace[:2] in (("B", "L"), ("B", "R"))


@pytest.mark.parametrize(
    "net",
    [
        "tasks: {A: {split: {threads: 6}}, B: {}, C: {join: {merge: 3}}}\nflows: {start: A, A: B, B: C, C: end}\n",
        "tasks: {A: {}, B: {}, C: {}, D: {join: {partial: 1}}}\nflows: {start: A, A: [B, C], B: D, C: D, D: end}\n",
        """
tasks: {A: {}, B: {}, C: {}, D: {join: {partial: {need: 1, mode: cancelling}}}}
flows: {start: A, A: [B, C], B: D, C: D, D: end}
""",
        """
tasks: {A: {}, B: {}, C: {}, D: {join: {partial: {need: data.n, mode: blocking}}}}
flows: {start: A, A: [B, C], B: D, C: D, D: end}
""",
        """
tasks: {A: {split: or}, B: {}, C: {}, J: {join: structured-or}}
flows:
  - {from: start, to: A}
  - {from: A, to: B, when: data.b}
  - {from: A, to: C, default: true}
  - {from: B, to: J}
  - {from: C, to: J}
  - {from: J, to: end}
""",
        """
tasks: {A: {split: or}, B: {split: xor}, C: {}, D: {}, E: {}, J: {join: local-or}, K: {}}
flows:
  - {from: start, to: A}
  - {from: A, to: B, when: data.b}
  - {from: A, to: C, when: data.c}
  - {from: B, to: D, when: data.d}
  - {from: B, to: E, default: true}
  - {from: D, to: J}
  - {from: E, to: K}
  - {from: C, to: J}
  - {from: J, to: end}
  - {from: K, to: end}
""",
        "tasks: {A: {}, B: {instances: 3}, X: {completes: [B]}}\nflows: {start: A, A: [B, X], B: end, X: end}\n",
        """
conditions: [m]
tasks: {X: {}, Y: {}, M: {reads: [m]}, S: {}}
flows: {start: S, S: [X, M], X: m, m: Y, Y: end, M: end}
""",
    ],
)
def test_constructs_are_judged_sensibly(net: str) -> None:
    found = verified(net)
    expected = "unsound" if "reads: [" in net else "sound"
    assert found.verdict == expected, found


def test_a_remainder_of_threads_is_a_deadlock() -> None:
    found = verified("tasks: {A: {split: {threads: 5}}, C: {join: {merge: 3}}}\nflows: {start: A, A: C, C: end}\n")
    problem = only(found, "deadlock")
    assert problem.trace == ("A", "C", "left: 2 tokens in 'A->C'; 'C' cannot start")
    assert "multiple of 3" in problem.hint


def test_work_that_a_choice_started_before_it_was_cancelled_is_told() -> None:
    found = verified("""
conditions: [p]
tasks: {A: {}, B: {}, C: {}, D: {cancels: [B]}, E: {join: and}}
flows: {start: A, A: [p, D], p: [B, C], B: E, C: E, D: E, E: end}
""")
    assert "start B" in only(found, "deadlock").trace or only(found, "deadlock").trace
