"""Advanced Branching and Synchronization: patterns 6 to 9, 28 to 33, 37, 38, 41 and 42."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import OUTSIDE, Category, Net, Pattern, completed, flow, moves, outside, path, true

_GROUP: Final[Category] = "Advanced Branching and Synchronization"


def _partial(need: int, of: int, mode: str) -> dict[str, object]:
    return {**OUTSIDE, "join": {"partial": {"need": need, "of": of, "mode": mode}}}


def _fork(join: dict[str, object], *branches: str) -> Net:
    """A forks into the branches, which D joins."""
    flows = [flow("start", "A"), *(each for branch in branches for each in path("A", branch, "D")), flow("D", "end")]
    return {"tasks": {**outside("A", *branches), "D": join}, "flows": flows}


BRANCHING: Final = (
    Pattern(
        6,
        "Multi-Choice",
        _GROUP,
        "One or more of several branches are taken, each decided by its own predicate.",
        "split: or, with a default flow",
        "The data that the predicates read are there when the task before them completes.",
        "Predicates per branch, evaluated independently of each other, and an outcome that is never empty.",
        "Russell et al. 2006: partial where several constructs must be combined or the empty outcome is undefined. "
        "All predicates read the same snapshot of the data, once.",
        aliases=("OR-split", "Selection", "Multiple Choice"),
        net={
            "tasks": {"A": {**OUTSIDE, "split": "or"}, **outside("B", "C", "D", "E")},
            "flows": [
                flow("start", "A"),
                flow("A", "B", true("p1")),
                flow("A", "C", true("p2")),
                flow("A", "D", true("p3")),
                flow("A", "E", default=True),
            ],
        },
        data={"p1": True, "p3": True},
        script=completed("A", "D", "B"),
    ),
    Pattern(
        7,
        "Structured Synchronizing Merge",
        _GROUP,
        "Waits for exactly those branches that the matching Multi-Choice took.",
        "join: structured-or",
        "One matching Multi-Choice, a balanced structure in between, no second enabling of the split before the merge "
        "fired, no selective cancellation in between.",
        "Decided from what the split tells its join; usable again in a loop.",
        "Russell et al. 2006: partial where the author counts the branches by hand. What the split decided stands, "
        "even when the data change afterwards. A branch in which nothing is left, because it was cancelled as a "
        "whole, is no longer waited for. Registration refuses the join when no OR-split matches it.",
        aliases=("Structured Synchronising Merge", "Synchronizing Merge", "Synchronizing Join"),
        net={
            "tasks": {
                "A": {**OUTSIDE, "split": "or"},
                **outside("B", "C", "D"),
                "J": {**OUTSIDE, "join": "structured-or"},
            },
            "flows": [
                flow("start", "A"),
                flow("A", "B", true("p1")),
                flow("A", "C", true("p2")),
                flow("A", "D", default=True),
                *(flow(branch, "J") for branch in ("B", "C", "D")),
                flow("J", "A", true("again")),
                flow("J", "end", default=True),
            ],
        },
        data={"p1": True, "p2": True},
        script=moves(
            "complete A",
            "complete C",
            "complete B",
            'complete J {"again": true}',
            'complete A {"p1": false, "p2": false}',
            "complete D",
            'complete J {"again": false}',
        ),
    ),
    Pattern(
        8,
        "Multi-Merge",
        _GROUP,
        "Every thread that arrives goes on, so what follows may run several times side by side.",
        "join: xor over branches that overlap",
        "It goes with a split before it; the place of the merge holds several tokens.",
        "Each arrival starts a run of its own, and these runs can overlap.",
        "Russell et al. 2006: partial where only one run of the following task is possible at a time, or arrivals "
        "are swallowed. Every arrival is an activation with a work item id of its own.",
        aliases=("Multiple Merge",),
        net={
            "tasks": outside("A", "B", "C", "D"),
            "flows": [flow("start", "A"), flow("A", "B"), flow("A", "C"), flow("B", "D"), flow("C", "D")],
        },
        script=completed("A", "B", "D", "C", "D"),
    ),
    Pattern(
        9,
        "Structured Discriminator",
        _GROUP,
        "The first of several branches goes on, the others are swallowed; it resets when all have arrived.",
        "join: {partial: {need: 1, mode: structured}}",
        "One matching Parallel Split, a structured block, each branch once before the reset, nothing in between "
        "cancelled selectively.",
        "A construct of its own with a defined reset.",
        "Russell et al. 2006: partial for gateways whose reset is an expression of the author's. A branch that "
        "delivers twice in a round is against the context; its second token waits for the next round.",
        aliases=("Discriminator", "1-out-of-M Join"),
        net=_fork(_partial(1, 3, "structured"), "B", "C", "E"),
        script=completed("A", "B", "D", "C", "E"),
    ),
    Pattern(
        28,
        "Blocking Discriminator",
        _GROUP,
        "As pattern 9, for branches that may deliver more than once: what arrives on a branch already seen is held "
        "back until the reset.",
        "join: {partial: {need: 1, mode: blocking}}",
        "None of structure: the join keeps books per branch.",
        "Further arrivals are blocked, never dropped and never early.",
        "Russell et al. 2006: no evaluated product supports it fully. Every incoming flow is taken for an active "
        "branch: a round ends when each has delivered once. The tokens held back then count at once, one "
        "of each branch.",
        net={
            "tasks": {"Open": {}, **outside("A1", "A2", "B1", "B2"), "D": _partial(1, 2, "blocking")},
            "conditions": ["a", "b"],
            "flows": [
                *path("start", "Open", "A1", "a", "D"),
                *path("Open", "A2", "a"),
                *path("Open", "B1", "b", "D"),
                *path("Open", "B2", "b"),
            ],
        },
        script=completed("A1", "D", "A2", "B1", "D", "B2"),
    ),
    Pattern(
        29,
        "Cancelling Discriminator",
        _GROUP,
        "The first branch to arrive cancels the others and goes on; the join is armed again at once.",
        "join: {partial: {need: 1, mode: cancelling}}",
        "The tasks to be cancelled are those of the branches.",
        "Everything on the branches is cancelled, wherever it stands.",
        "Russell et al. 2006: partial where only a scope as a whole can be cancelled. The branches are cancelled "
        "in the step in which the first one arrives: everything between the join and the nearest split before it, or "
        "what `cancels` names; what waits in the join's other inputs is in any case.",
        net=_fork(_partial(1, 2, "cancelling"), "B", "C"),
        script=moves("complete A", "start C", "complete B", "complete D"),
    ),
    Pattern(
        30,
        "Structured Partial Join",
        _GROUP,
        "As pattern 9, but the join goes on after n of m branches.",
        "join: {partial: {need: n, mode: structured}}",
        "As pattern 9.",
        "n may be any number up to m.",
        "Russell et al. 2006: the discriminator is the case n = 1, the AND-join the case n = m. n may be computed: it "
        "is asked for until the join fires, and a number that is not between 1 and m is an incident.",
        aliases=("N-out-of-M Join", "Partial Join"),
        net=_fork(_partial(2, 4, "structured"), "B", "C", "E", "F"),
        script=completed("A", "B", "C", "D", "E", "F"),
    ),
    Pattern(
        31,
        "Blocking Partial Join",
        _GROUP,
        "As pattern 28, but the join goes on after n of m branches.",
        "join: {partial: {need: n, mode: blocking}}",
        "As pattern 28, with 2 <= n < m.",
        "As pattern 28.",
        "Russell et al. 2006: no evaluated product supports it fully. The reset is that of pattern 28; the next firing "
        "needs n branches again, held tokens among them.",
        net={
            "tasks": {"Open": {}, **outside("A1", "A2", "B1", "B2", "C1", "E1"), "D": _partial(2, 4, "blocking")},
            "conditions": ["a", "b", "c", "e"],
            "flows": [
                *path("start", "Open", "A1", "a", "D"),
                *path("Open", "A2", "a"),
                *path("Open", "B1", "b", "D"),
                *path("Open", "B2", "b"),
                *path("Open", "C1", "c", "D"),
                *path("Open", "E1", "e", "D"),
            ],
        },
        script=completed("A1", "A2", "B1", "D", "B2", "C1", "E1", "D"),
    ),
    Pattern(
        32,
        "Cancelling Partial Join",
        _GROUP,
        "As pattern 29, but the join goes on after n of m branches.",
        "join: {partial: {need: n, mode: cancelling}}",
        "As pattern 29.",
        "As pattern 29.",
        "Russell et al. 2006: the cancelling form of pattern 30. What is cancelled is chosen as in pattern 29.",
        net=_fork(_partial(2, 4, "cancelling"), "B", "C", "E", "F"),
        script=moves("complete A", "start E", "complete B", "complete F", "complete D"),
    ),
    Pattern(
        33,
        "Generalized AND-Join",
        _GROUP,
        "An AND-join whose branches may deliver any number of times; what is more than needed waits for later firings.",
        "join: and (tokens are counted)",
        "None: the branches may deliver in any number and order.",
        "No bound on the tokens that wait on a branch, and none of them is lost.",
        "Russell et al. 2006: partial where surplus is dropped or miscounted. A surplus that nothing can ever match "
        "is reported as stuck, not as completed.",
        aliases=("Generalised AND-Join", "Generalized Join"),
        net={
            "tasks": {
                "Open": {},
                **outside("A1", "A2", "B1", "B2"),
                "J": {**OUTSIDE, "join": "and"},
            },
            "conditions": ["a", "b"],
            "flows": [
                *path("start", "Open", "A1", "a", "J"),
                *path("Open", "A2", "a"),
                *path("Open", "B1", "b", "J"),
                *path("Open", "B2", "b"),
            ],
        },
        script=completed("A1", "A2", "B1", "J", "B2", "J"),
    ),
    Pattern(
        37,
        "Local Synchronizing Merge",
        _GROUP,
        "Waits for the branches that are still active, decided from what arrives at the merge alone.",
        "join: local-or",
        "Each branch tells the merge once whether it is taken or not: no loop between its splits and the merge, every "
        "place on the way with one task before and one after it, nothing on the way cancelled selectively.",
        "No structure is demanded and the outcome is deterministic.",
        "Russell et al. 2006 calls it Acyclic Synchronizing Merge; the later catalogue renamed it. Carried by tokens "
        "that say true or false: a branch that a split does not take gets a false one, tasks that it reaches are "
        "passed over. The merge may itself lie in a loop, each turn of which is a round of its own. What breaks the "
        "context is refused at registration, cancellation apart.",
        aliases=("Acyclic Synchronizing Merge", "Local Synchronising Merge"),
        net={
            "tasks": {
                "A": {**OUTSIDE, "split": "or"},
                **outside("B", "C", "D", "E"),
                "J": {**OUTSIDE, "join": "local-or"},
                "K": {**OUTSIDE, "join": "local-or"},
            },
            "flows": [
                flow("start", "A"),
                flow("A", "B", true("p1")),
                flow("A", "C", true("p2")),
                flow("B", "D", true("p3")),
                flow("B", "E", default=True),
                *path("D", "J", "K", "end"),
                flow("C", "J"),
                flow("E", "K"),
            ],
        },
        data={"p1": True, "p2": True, "p3": False},
        script=completed("A", "B", "C", "J", "E", "K"),
    ),
    Pattern(
        38,
        "General Synchronizing Merge",
        _GROUP,
        "Waits as long as an empty branch could still receive a token from the present state, in any net.",
        "join: or",
        "None: loops and cancellation are allowed.",
        "An analysis of the whole state rather than of the structure.",
        "Russell et al. 2006 and Wynn et al. 2009 (reset nets). Other OR-joins are taken as able to fire; two that "
        "wait for each other both wait, and explain says so.",
        aliases=("OR-join", "General Synchronising Merge"),
        net={
            "tasks": {
                **outside("A", "B", "C"),
                "Q": {**OUTSIDE, "cancels": ["B"]},
                "J": {**OUTSIDE, "join": "or"},
            },
            "flows": [
                *path("start", "A", "B", "J", "end"),
                flow("A", "C"),
                flow("A", "Q"),
                flow("C", "C", true("more")),
                flow("C", "J", default=True),
                flow("Q", "J"),
            ],
        },
        script=moves(
            "complete A",
            'complete C {"more": true}',
            "complete Q",
            'complete C {"more": false}',
            "complete J",
        ),
    ),
    Pattern(
        41,
        "Thread Merge",
        _GROUP,
        "A given number of threads of one branch become one.",
        "join: {merge: n}",
        "The number is known at design time; a place holds several tokens.",
        "A construct that takes n tokens of one branch at once.",
        "Russell et al. 2006: BPMN carries it as a start quantity. A remainder that never fills up is stuck.",
        net={
            "tasks": {
                "A": {**OUTSIDE, "split": {"threads": 6}},
                **outside("B"),
                "C": {**OUTSIDE, "join": {"merge": 3}},
            },
            "flows": path("start", "A", "B", "C"),
        },
        script=completed("A", *["B"] * 6, "C", "C"),
    ),
    Pattern(
        42,
        "Thread Split",
        _GROUP,
        "One thread becomes a given number of threads on the same branch.",
        "split: {threads: n}",
        "The number is known at design time; a place holds several tokens.",
        "A construct that puts n tokens on one branch at once.",
        "Russell et al. 2006: BPMN carries it as a completion quantity.",
        net={
            "tasks": {"A": {**OUTSIDE, "split": {"threads": 3}}, **outside("B", "C")},
            "flows": path("start", "A", "B", "C"),
        },
        script=completed("A", "B", "C", "B", "B", "C", "C"),
    ),
)
