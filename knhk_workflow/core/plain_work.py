"""Plain work in one go: a task that is one piece of outside work, from its offer to the tokens behind it.

Most tasks of most workflows are such: nobody else wants their tokens, nothing is cancelled, locked, timed, repeated or
chosen. What follows from their offer and from their result is known when they are compiled (`TaskNode.single_item`,
`TaskNode.plain_work`), so it is told here without asking: the events that the general rules emit, in their order, and
the case as folding those one by one leaves it. This is the only place beside the appliers that changes a case; the
tests hold it against the general rules and against a replay, over random nets and commands.
"""

from __future__ import annotations

from knhk_workflow.core import events as e
from knhk_workflow.core.case import TOKENS_MAX, Activation, Instance, NetInstance
from knhk_workflow.core.data import DATA_BYTES_MAX, EMPTY, merge
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import TaskNode


def offer(step: Step, net: NetInstance, node: TaskNode, inputs: tuple[str, ...]) -> None:
    """One activation over the tokens in `inputs`, its work on offer: TaskEnabled, ItemOffered."""
    case, number, task, now = step.case, net.number, node.id, step.now
    serial = case.last_activation + 1
    run = Instance(1, "offered", 1, "", b"", b"", 0, now, now)
    activation = Activation(serial, number, task, inputs, case.sequence + 1, False, {1: run})
    step.tell((e.TaskEnabled(number, task, serial, inputs), e.ItemOffered(number, task, serial, 1, 1)))
    case.activations[serial] = activation
    case.last_activation = serial
    case.open_items += 1
    active = net.active
    if task in active:
        active[task].append(serial)
    else:
        active[task] = [serial]
    step.items[serial, 1] = net.name, node, activation, run


def fits(net: NetInstance, node: TaskNode, activation: Activation, output: bytes) -> bool:
    """Whether no limit can stand in the way of a completion, and no incident."""
    return (
        len(net.data) + len(output) <= DATA_BYTES_MAX
        and net.tokens + len(node.outputs) <= TOKENS_MAX
        and not activation.incidents
    )


def complete(
    step: Step, net: NetInstance, node: TaskNode, activation: Activation, run: Instance, owner: str, output: bytes
) -> None:
    """Work is done: ItemStarted unless it was before, ItemCompleted, DataUpdated unless it gave none, TaskCompleted."""
    case, number, task, serial = step.case, net.number, node.id, activation.number
    instance, attempt, produced = run.number, run.attempt, node.outputs
    told: list[e.Event] = []
    if run.state != "started":
        inputs = () if activation.started else activation.inputs
        told.append(e.ItemStarted(number, task, serial, instance, attempt, owner or run.owner, inputs))
        net.take(inputs)
        activation.started = True
        if owner:
            run.owner = owner
    told.append(e.ItemCompleted(number, task, serial, instance, attempt, output))
    run.state = "completed"
    run.output = output
    run.changed_at = step.now
    case.open_items -= 1
    if case.firings:
        case.firings = 0
    if output and output != EMPTY:
        told.append(e.DataUpdated(number, output))
        net.data = merge(net.data, output)
    told.append(e.TaskCompleted(number, task, serial, produced))
    step.tell(told)
    del case.activations[serial]
    active = net.active
    if len(active[task]) == 1:
        del active[task]
    else:
        active[task].remove(serial)
    net.put(produced)
    step.items[serial, instance] = net.name, node, activation, run
    step.touch(number, produced)
