"""`knhk work`: work items, for people who do them and for those who help out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Final, cast

import click
import grpc
from google.protobuf.duration_pb2 import Duration
from rich.console import RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.pages import gathered
from knhk_sidecar.cli.render import (
    ago,
    case_state,
    grid,
    item_state,
    moment,
    pairs,
    present,
    short,
    show,
    stated,
    text_of,
    unveil,
)
from knhk_sidecar.cli.session import Session, connected, data_argument, data_option, request_id_option, set_option
from knhk_sidecar.client import Client

STATES: Final = (
    "offered",
    "allocated",
    "started",
    "suspended",
    "completed",
    "failed",
    "skipped",
    "withdrawn",
    "terminated",
)


@click.group()
def work() -> None:
    """Work items: list, claim, start, complete, fail.

    \b
    Example:
      knhk work list --role manager
      knhk work complete 1.1.1@order-1 --set approved=true
    """


_user = click.option("--user", default="", help="The participant acted for; otherwise you.")


def _item(command: Callable[..., None]) -> Callable[..., None]:
    return click.argument("item_id")(_user(request_id_option(command)))


@work.command("list")
@click.option("--role", default="", help="Only items that this role may take.")
@click.option("--user", default="", help="Only items of this participant.")
@click.option("--state", type=click.Choice(STATES), help="Only items in this state; otherwise all that have not ended.")
@click.option("--case", "case_id", default="", help="Only items of this case.")
@click.option("--task", "task_id", default="", help="Only items of this task.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most items to list.")
@click.option("--watch", is_flag=True, help="Look again every second.")
@connected
def list_items(
    session: Session, role: str, user: str, state: str | None, case_id: str, task_id: str, limit: int, watch: bool
) -> None:
    """List work items.

    \b
    Example:
      knhk work list --role manager --state offered
    """
    number = pb.WorkItemState.Value(f"WORK_ITEM_STATE_{state.upper()}") if state else pb.WORK_ITEM_STATE_UNSPECIFIED
    with session.client() as client:

        def page(size: int, token: str) -> pb.ListWorkItemsResponse:
            request = pb.ListWorkItemsRequest(
                role=role, user=user, state=number, case_id=case_id, task_id=task_id, page_size=size, page_token=token
            )
            return client.work.ListWorkItems(request, timeout=session.timeout)

        def ask() -> pb.ListWorkItemsResponse:
            return gathered(limit, page, lambda found: found.items)

        present(session.output, ask, lambda answer: items_table(answer.items), watch)


@work.command("show")
@click.argument("item_id")
@click.option("--reveal", is_flag=True, help="Show sensitive data too, instead of ***.")
@connected
def show_item(session: Session, item_id: str, reveal: bool) -> None:
    """Show a work item with its input.

    \b
    Example:
      knhk work show 1.1.1@order-1
    """
    with session.client() as client:
        item = client.work.GetWorkItem(pb.GetWorkItemRequest(item_id=item_id), timeout=session.timeout).item
        if reveal:
            unveil(item)
        _show(session, item)


@work.command("claim")
@_item
@connected
def claim(session: Session, item_id: str, user: str, request_id: str) -> None:
    """Take an offered item.

    \b
    Example:
      knhk work claim 1.1.1@order-1 --user alice
    """
    with session.client() as client:
        request = pb.ClaimWorkItemRequest(item_id=item_id, user=user, request_id=request_id)
        _show(session, client.work.ClaimWorkItem(request, timeout=session.timeout).item)


@work.command("start")
@_item
@connected
def start(session: Session, item_id: str, user: str, request_id: str) -> None:
    """Begin an item; an offered one is claimed on the way.

    \b
    Example:
      knhk work start 1.1.1@order-1
    """
    with session.client() as client:
        request = pb.StartWorkItemRequest(item_id=item_id, user=user, request_id=request_id)
        _show(session, client.work.StartWorkItem(request, timeout=session.timeout).item)


@work.command("complete")
@_item
@data_option
@set_option
@connected
def complete(
    session: Session, item_id: str, user: str, request_id: str, data: str | None, assignments: tuple[str, ...]
) -> None:
    """End an item with its output.

    \b
    Example:
      knhk work complete 1.1.1@order-1 --set approved=true
    """
    request = pb.CompleteWorkItemRequest(
        item_id=item_id, user=user, request_id=request_id, output_json=data_argument(data, assignments)
    )
    with session.client() as client:
        answer = client.work.CompleteWorkItem(request, timeout=session.timeout)
    show(answer, session.output, lambda: _after(answer.item, answer.case_state, answer.opened_item_ids))


@work.command("fail")
@_item
@click.option("--message", default="", help="What went wrong, for people.")
@click.option("--code", default="", help="Stable code for the workflow's on_error.")
@click.option("--retry-after", type=click.FloatRange(min=0), default=None, help="Seconds until it is tried again.")
@click.option("--permanent", is_flag=True, help="Trying again is pointless.")
@connected
def fail(
    session: Session,
    item_id: str,
    user: str,
    request_id: str,
    message: str,
    code: str,
    retry_after: float | None,
    permanent: bool,
) -> None:
    """Report that an item failed.

    \b
    Example:
      knhk work fail 1.1.1@order-1 --code address_unknown --message "the parcel came back"
    """
    request = pb.FailWorkItemRequest(
        item_id=item_id, user=user, request_id=request_id, message=message, code=code, permanent=permanent
    )
    if retry_after is not None:
        request.retry_after.FromNanoseconds(round(retry_after * 1e9))
    with session.client() as client:
        answer = client.work.FailWorkItem(request, timeout=session.timeout)
    show(answer, session.output, lambda: _item_table(answer.item, ("incident", answer.incident_id)))


@work.command("poll")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--max", "most", type=click.IntRange(1, 1_000), default=1, show_default=True, help="Most items to take.")
@click.option(
    "--wait", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds to wait for one."
)
@click.option(
    "--lease", type=click.FloatRange(0.1, 3_600), default=300.0, show_default=True, help="Seconds to keep it."
)
@click.option("--worker", "worker_id", default="", help="A name to get the same items under again.")
@click.option("--role", "roles", multiple=True, help="Only items that this role may take; may be repeated.")
@connected
def poll(
    session: Session,
    tasks: tuple[str, ...],
    most: int,
    wait: float,
    lease: float,
    worker_id: str,
    roles: tuple[str, ...],
) -> None:
    """Take offered items as a worker does: each is started and yours until its lease ends.

    TASK is the id of a task, or WORKFLOW/TASK. `knhk work complete` or `fail` reports the result; without one the item
    is offered again when its lease ends.

    \b
    Example:
      knhk work poll order-approval/approve --lease 600
    """
    length = Duration()
    length.FromNanoseconds(round(lease * 1e9))
    subscription = pb.WorkSubscription(
        worker_id=worker_id or f"poll-{random.getrandbits(64):016x}",
        tasks=tasks,
        credit=most,
        lease=length,
        roles=roles,
    )
    with session.client() as client:
        found = taken(client, subscription, most, wait)
    show(found, session.output, lambda: leases_table(found.items))


def taken(client: Client, subscription: pb.WorkSubscription, most: int, wait: float) -> pb.StreamWorkItemsResponse:
    """What comes to a worker until it has `most` items, or nothing has come for `wait` seconds."""
    found = pb.StreamWorkItemsResponse()
    first = pb.StreamWorkItemsRequest(subscribe=subscription)
    stream = client.work.StreamWorkItems(iter([first]), timeout=wait)
    try:
        for response in stream:
            found.items.extend(response.items)
            if len(found.items) >= most:
                break
    except grpc.RpcError as error:
        if cast("grpc.Call", error).code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
    finally:
        stream.cancel()  # type: ignore[no-untyped-call]  # the stubs leave its types out
    return found


@work.command("skip")
@_item
@click.option("--reason", default="", help="Why, for the history.")
@connected
def skip(session: Session, item_id: str, user: str, request_id: str, reason: str) -> None:
    """Pass over an item: its task goes on without output.

    \b
    Example:
      knhk work skip 1.1.1@order-1 --reason "done on paper"
    """
    request = pb.SkipWorkItemRequest(item_id=item_id, user=user, request_id=request_id, reason=reason)
    with session.client() as client:
        answer = client.work.SkipWorkItem(request, timeout=session.timeout)
    show(answer, session.output, lambda: _after(answer.item, answer.case_state, ()))


@work.command("release")
@_item
@connected
def release(session: Session, item_id: str, user: str, request_id: str) -> None:
    """Give an allocated item back: it is on offer again.

    \b
    Example:
      knhk work release 1.1.1@order-1
    """
    with session.client() as client:
        request = pb.ReleaseWorkItemRequest(item_id=item_id, user=user, request_id=request_id)
        _show(session, client.work.ReleaseWorkItem(request, timeout=session.timeout).item)


def _group(command: Callable[..., None]) -> Callable[..., None]:
    activation = click.option(
        "--activation", type=click.IntRange(min=1), default=None, help="Which one, when several are live."
    )
    return click.argument("case_id")(click.argument("task_id")(activation(request_id_option(command))))


@work.command("add-instance")
@_group
@data_option
@set_option
@connected
def add_instance(
    session: Session,
    case_id: str,
    task_id: str,
    activation: int | None,
    request_id: str,
    data: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Add an instance to a running task with dynamic instances; the data is what it is made from.

    \b
    Example:
      knhk work add-instance order-1 ask-supplier --set supplier=acme
    """
    request = pb.AddInstanceRequest(
        case_id=case_id,
        task_id=task_id,
        activation=activation or 0,
        request_id=request_id,
        data_json=data_argument(data, assignments),
    )
    with session.client() as client:
        answer = client.work.AddInstance(request, timeout=session.timeout)
    show(
        answer,
        session.output,
        lambda: _group_table(answer.group, ("new instance", str(answer.instance)), ("its work item", answer.item_id)),
    )


@work.command("close-instances")
@_group
@connected
def close_instances(session: Session, case_id: str, task_id: str, activation: int | None, request_id: str) -> None:
    """Let a running task take no further instances.

    \b
    Example:
      knhk work close-instances order-1 ask-supplier
    """
    request = pb.CloseInstancesRequest(
        case_id=case_id, task_id=task_id, activation=activation or 0, request_id=request_id
    )
    with session.client() as client:
        answer = client.work.CloseInstances(request, timeout=session.timeout)
    show(answer, session.output, lambda: _group_table(answer.group))


@work.command("complete-instances")
@_group
@connected
def complete_instances(session: Session, case_id: str, task_id: str, activation: int | None, request_id: str) -> None:
    """Declare a task with several instances done: open ones count as completed, the flow goes on.

    \b
    Example:
      knhk work complete-instances order-1 ask-supplier
    """
    request = pb.CompleteInstancesRequest(
        case_id=case_id, task_id=task_id, activation=activation or 0, request_id=request_id
    )
    with session.client() as client:
        answer = client.work.CompleteInstances(request, timeout=session.timeout)
    show(answer, session.output, lambda: _group_table(answer.group))


@work.command("cancel-instances")
@_group
@connected
def cancel_instances(session: Session, case_id: str, task_id: str, activation: int | None, request_id: str) -> None:
    """Stop a task with several instances: open ones go, nothing flows on.

    \b
    Example:
      knhk work cancel-instances order-1 ask-supplier
    """
    request = pb.CancelInstancesRequest(
        case_id=case_id, task_id=task_id, activation=activation or 0, request_id=request_id
    )
    with session.client() as client:
        answer = client.work.CancelInstances(request, timeout=session.timeout)
    show(answer, session.output, lambda: _group_table(answer.group))


def _group_table(group: pb.InstanceGroup, *more: tuple[str, RenderableType]) -> RenderableType:
    return pairs(
        (
            ("task", group.task_id),
            ("case", group.case_id),
            ("activation", str(group.activation)),
            ("instances", str(group.created_count)),
            ("completed", str(group.completed_count)),
            ("open", str(group.open_count)),
            ("takes more", "yes" if group.accepts_instances else "no"),
            *more,
        )
    )


def items_table(items: Iterable[pb.WorkItem]) -> RenderableType:
    """Work items, one per line."""
    table = grid("item", "task", "workflow", "state", "roles", "owner", ">attempt", ">since")
    for each in items:
        state, roles = stated(item_state(each.state)), ", ".join(each.roles)
        title, owner = each.title or each.task_id, short(each.owner)
        table.add_row(each.item_id, title, each.spec_id, state, roles, owner, str(each.attempt), ago(each.create_time))
    return table if table.row_count else Text("No work items.", style="dim")


def leases_table(items: Iterable[pb.LeasedWorkItem]) -> RenderableType:
    """Items that were taken, one per line."""
    table = grid("item", "task", "workflow", "input", "lease ends")
    for each in items:
        item = each.item
        table.add_row(
            item.item_id,
            item.title or item.task_id,
            item.spec_id,
            text_of(item.data_json),
            moment(each.lease_expire_time),
        )
    return table if table.row_count else Text("No work items.", style="dim")


def _show(session: Session, item: pb.WorkItem) -> None:
    show(item, session.output, lambda: _item_table(item))


def _item_table(item: pb.WorkItem, *more: tuple[str, RenderableType]) -> RenderableType:
    return pairs(
        (
            ("item", item.item_id),
            ("task", f"{item.title} ({item.task_id})" if item.title not in ("", item.task_id) else item.task_id),
            ("case", f"{item.case_id} of {item.spec_id}" if item.spec_id else item.case_id),
            ("state", stated(item_state(item.state))),
            ("roles", ", ".join(item.roles)),
            ("owner", short(item.owner)),
            ("attempt", str(item.attempt)),
            ("offered", moment(item.create_time)),
            ("started", moment(item.start_time)),
            ("ended", moment(item.end_time)),
            ("lease ends", moment(item.lease_expire_time)),
            ("input", text_of(item.data_json)),
            ("output", text_of(item.output_json)),
            ("last error", item.last_error),
            *more,
        )
    )


def _after(item: pb.WorkItem, case: pb.CaseState.ValueType, opened: Iterable[str]) -> RenderableType:
    return _item_table(item, ("the case is", stated(case_state(case))), ("next work", "\n".join(opened)))
