"""Multiple Instances: patterns 12 to 15 and 34 to 36."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import Category, Pattern

_GROUP: Final[Category] = "Multiple Instances"

INSTANCES: Final = (
    Pattern(
        12,
        "Multiple Instances without Synchronization",
        _GROUP,
        "Several independent instances of a task run in one case, and the flow goes on without waiting for them.",
        "instances: {sync: false}",
        "The instances run in the same case and nothing later waits for them together.",
        "They are concurrent and belong to the case.",
        "Russell et al. 2006: partial where a loop with a split imitates it, or each instance is a case of its own.",
        aliases=("MI without Synchronization", "Multi Threading without Synchronization", "Spawn Off Facility"),
    ),
    Pattern(
        13,
        "Multiple Instances with a priori Design-Time Knowledge",
        _GROUP,
        "A number of instances that the model fixes; the flow goes on when all are done.",
        "instances: n",
        "The number stands in the model.",
        "Concurrent instances of one task with automatic synchronization.",
        "Russell et al. 2006: partial where the author draws the copies.",
        aliases=("MI with a priori Design-Time Knowledge", "MI with Design-Time Knowledge"),
    ),
    Pattern(
        14,
        "Multiple Instances with a priori Run-Time Knowledge",
        _GROUP,
        "A number of instances that is known just before the first one starts; the flow goes on when all are done.",
        "instances: {min: expression}, or for_each",
        "The number is fixed when the task is enabled.",
        "The number comes from data and the instances are concurrent.",
        "Russell et al. 2006: partial where instances run one after the other. No instance at all completes at once.",
        aliases=("MI with a priori Run-Time Knowledge", "MI with Runtime Knowledge", "MI with Knowledge"),
    ),
    Pattern(
        15,
        "Multiple Instances without a priori Run-Time Knowledge",
        _GROUP,
        "Instances may be added as long as one is running; the flow goes on when all are done.",
        "instances: {create: dynamic}",
        "At least one instance is not done when another is added.",
        "An instance can be added at any time while one is running.",
        "Russell et al. 2006: partial where only a side process can add one.",
        aliases=("MI without a priori Run-Time Knowledge", "MI without Runtime Knowledge", "MI without Knowledge"),
    ),
    Pattern(
        34,
        "Static Partial Join for Multiple Instances",
        _GROUP,
        "The flow goes on after n of m instances; the rest run on without effect.",
        "instances: {threshold: n, rest: continue}",
        "m is known before the first instance starts.",
        "The remaining instances go on, and the task resets when all are done.",
        "Russell et al. 2006: partial where the remaining instances must be cancelled.",
        aliases=("Static Partial Join for MI", "Static N-out-of-M Join for MI"),
    ),
    Pattern(
        35,
        "Cancelling Partial Join for Multiple Instances",
        _GROUP,
        "The flow goes on after n of m instances, and the rest are cancelled.",
        "instances: {threshold: n, rest: cancel}",
        "m is known before the first instance starts.",
        "The remaining instances are removed in the same step.",
        "Russell et al. 2006: partial where a completion expression of the author's imitates it.",
        aliases=("Cancelling Partial Join for MI", "Cancelling N-out-of-M Join for MI"),
    ),
    Pattern(
        36,
        "Dynamic Partial Join for Multiple Instances",
        _GROUP,
        "A condition is tested at each completion of an instance; instances may be added until it holds.",
        "instances: {create: dynamic, until: expression}",
        "The condition is over data, not only over counts.",
        "A general condition, adding while it is false, and adding that can be closed.",
        "Russell et al. 2006: no evaluated product supports it fully. The source does not say what follows when all "
        "instances are done and the condition is false: the task completes and records that it was not met.",
        aliases=("Dynamic Partial Join for MI", "Dynamic N-out-of-M Join for MI"),
    ),
)
