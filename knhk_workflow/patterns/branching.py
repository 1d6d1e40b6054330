"""Advanced Branching and Synchronization: patterns 6 to 9, 28 to 33, 37, 38, 41 and 42."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import OUTSIDE, Category, Pattern, completed, flow, outside, path

_GROUP: Final[Category] = "Advanced Branching and Synchronization"

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
        "even when the data change afterwards.",
        aliases=("Structured Synchronising Merge", "Synchronizing Merge", "Synchronizing Join"),
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
        "Russell et al. 2006: partial for gateways whose reset is an expression of the author's.",
        aliases=("Discriminator", "1-out-of-M Join"),
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
        "Russell et al. 2006: no evaluated product supports it fully. The reset waits for every branch once; a branch "
        "counts as active while it holds a token at the join.",
    ),
    Pattern(
        29,
        "Cancelling Discriminator",
        _GROUP,
        "The first branch to arrive cancels the others and goes on; the join is armed again at once.",
        "join: {partial: {need: 1, mode: cancelling}}",
        "The tasks to be cancelled are those of the branches.",
        "Everything on the branches is cancelled, wherever it stands.",
        "Russell et al. 2006: partial where only a scope as a whole can be cancelled.",
    ),
    Pattern(
        30,
        "Structured Partial Join",
        _GROUP,
        "As pattern 9, but the join goes on after n of m branches.",
        "join: {partial: {need: n, mode: structured}}",
        "As pattern 9.",
        "n may be any number up to m.",
        "Russell et al. 2006: the discriminator is the case n = 1, the AND-join the case n = m.",
        aliases=("N-out-of-M Join", "Partial Join"),
    ),
    Pattern(
        31,
        "Blocking Partial Join",
        _GROUP,
        "As pattern 28, but the join goes on after n of m branches.",
        "join: {partial: {need: n, mode: blocking}}",
        "As pattern 28, with 2 <= n < m.",
        "As pattern 28.",
        "Russell et al. 2006: no evaluated product supports it fully.",
    ),
    Pattern(
        32,
        "Cancelling Partial Join",
        _GROUP,
        "As pattern 29, but the join goes on after n of m branches.",
        "join: {partial: {need: n, mode: cancelling}}",
        "As pattern 29.",
        "As pattern 29.",
        "Russell et al. 2006: the cancelling form of pattern 30.",
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
        "Each branch tells the merge whether it is taken or not.",
        "No structure is demanded and the outcome is deterministic.",
        "Russell et al. 2006 calls it Acyclic Synchronizing Merge; the later catalogue renamed it. Carried by tokens "
        "that say true or false.",
        aliases=("Acyclic Synchronizing Merge", "Local Synchronising Merge"),
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
    ),
)
