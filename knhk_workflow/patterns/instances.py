"""Multiple Instances: patterns 12 to 15 and 34 to 36."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import OUTSIDE, Category, Net, Pattern, completed, moves, outside, path, true

_GROUP: Final[Category] = "Multiple Instances"


def _net(many: Net) -> Net:
    """B in several instances between A, which prepares, and C, which follows."""
    return {
        "tasks": {**outside("A", "C"), "B": {**OUTSIDE, **many}},
        "flows": path("start", "A", "B", "C", "end"),
    }


INSTANCES: Final = (
    Pattern(
        12,
        "Multiple Instances without Synchronization",
        _GROUP,
        "Several independent instances of a task run in one case, and the flow goes on without waiting for them.",
        "instances: {sync: false}",
        "The instances run in the same case and nothing later waits for them together.",
        "They are concurrent and belong to the case.",
        "Russell et al. 2006: partial where a loop with a split imitates it, or each instance is a case of its own. "
        "Entered again, the task has a further batch beside the first; with create: dynamic one can be added to a "
        "batch while one of it is at work. The case waits for all of them.",
        aliases=("MI without Synchronization", "Multi Threading without Synchronization", "Spawn Off Facility"),
        net=_net({"instances": {"min": 3, "sync": False}}),
        script=completed("A", "C", "B", "B", "B"),
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
        net=_net({"instances": 3}),
        script=moves("complete A", "start B", "start B", "complete B(3)", "complete B", "complete B", "complete C"),
    ),
    Pattern(
        14,
        "Multiple Instances with a priori Run-Time Knowledge",
        _GROUP,
        "A number of instances that is known just before the first one starts; the flow goes on when all are done.",
        "instances: {min: expression}, or for_each",
        "The number is fixed when the task is enabled.",
        "The number comes from data and the instances are concurrent.",
        "Russell et al. 2006: partial where instances run one after the other. The number is decided when the task is "
        "enabled, and what happens to the data afterwards does not change it. No instance at all completes at once.",
        aliases=("MI with a priori Run-Time Knowledge", "MI with Runtime Knowledge", "MI with Knowledge"),
        net=_net({"for_each": "data.xs"}),
        data={"xs": ["x", "y"]},
        script=completed("A", "B", "B", "C"),
    ),
    Pattern(
        15,
        "Multiple Instances without a priori Run-Time Knowledge",
        _GROUP,
        "Instances may be added as long as one is running; the flow goes on when all are done.",
        "instances: {create: dynamic}",
        "At least one instance is not done when another is added.",
        "An instance can be added at any time while one is running.",
        "Russell et al. 2006: partial where only a side process can add one. Adding is refused when all are done, at "
        "the maximum, and after the task was closed to it.",
        aliases=("MI without a priori Run-Time Knowledge", "MI without Runtime Knowledge", "MI without Knowledge"),
        net=_net({"instances": {"min": 2, "max": 5, "create": "dynamic"}}),
        script=moves("complete A", "complete B", "add_instance B", "complete B", "complete B", "complete C"),
    ),
    Pattern(
        34,
        "Static Partial Join for Multiple Instances",
        _GROUP,
        "The flow goes on after n of m instances; the rest run on without effect.",
        "instances: {threshold: n, rest: continue}",
        "m is known before the first instance starts.",
        "The remaining instances go on, and the task resets when all are done.",
        "Russell et al. 2006: partial where the remaining instances must be cancelled. Until the last one is done, a "
        "further token waits in front of the task and the case does not end.",
        aliases=("Static Partial Join for MI", "Static N-out-of-M Join for MI"),
        net=_net({"instances": {"min": 5, "max": 5, "threshold": 3, "rest": "continue"}}),
        script=completed("A", "B", "B", "B", "B", "C", "B"),
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
        net=_net({"instances": {"min": 5, "max": 5, "threshold": 3, "rest": "cancel"}}),
        script=moves("complete A", "start B(5)", "complete B", "complete B", "complete B", "complete C"),
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
        "instances are done and the condition is false: the task completes and records that it was not met. The "
        "condition reads the data, and in `item` how many instances are completed, active and there in total. Once it "
        "has held, nothing can be added and it is not asked again.",
        aliases=("Dynamic Partial Join for MI", "Dynamic N-out-of-M Join for MI"),
        net=_net(
            {
                "instances": {
                    "min": 3,
                    "create": "dynamic",
                    "until": f"double(item.completed) / double(item.total) >= 0.9 || {true('enough')}",
                }
            }
        ),
        script=moves(
            "complete A",
            "complete B",
            "add_instance B",
            "complete B",
            'complete B {"enough": true}',
            "complete C",
            "complete B",
        ),
    ),
)
