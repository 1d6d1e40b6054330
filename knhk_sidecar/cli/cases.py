"""`knhk case`: the life of a case."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

import click
import grpc
import yaml
from google.protobuf.duration_pb2 import Duration
from rich.console import Group, RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.failure import Exit, Failure, safe
from knhk_sidecar.cli.pages import PAGE, gathered
from knhk_sidecar.cli.render import (
    Timeline,
    ago,
    case_state,
    console,
    disarm,
    grid,
    moment,
    pairs,
    plain,
    present,
    short,
    show,
    stated,
    structured,
    text_of,
    unveil,
    veil,
)
from knhk_sidecar.cli.session import (
    Session,
    connected,
    data_argument,
    data_option,
    request_id_option,
    set_option,
)
from knhk_sidecar.cli.work import items_table
from knhk_sidecar.client import Client, NotReachable, WrongServer

STATES: Final = ("created", "running", "completed", "cancelled", "failed", "suspended")
ENDED: Final = frozenset({"completed", "cancelled", "failed"})
OUTCOMES: Final = {
    pb.TRIGGER_OUTCOME_UNSPECIFIED: "",
    pb.TRIGGER_OUTCOME_CONSUMED: "taken",
    pb.TRIGGER_OUTCOME_KEPT: "kept until somebody waits",
    pb.TRIGGER_OUTCOME_DROPPED: "lost, nobody waits",
}
RECONNECT_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 2.0, 2.0)  # a daemon that restarts is back within these


@click.group()
def case() -> None:
    """Cases: create, run, follow, explain, steer.

    \b
    Example:
      knhk case run order-approval --data @order.json --watch
    """


def _creation(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.argument("spec_id", metavar="WORKFLOW"),
            data_option,
            set_option,
            click.option("--id", "case_id", default="", help="The case's id; otherwise one is made."),
            click.option("--business-key", default="", help="Your own key, for look-up."),
            click.option(
                "--version",
                "version",
                type=click.IntRange(min=0),
                default=0,
                help="Version of the workflow; 0 is the latest.",
            ),
            request_id_option,
        )
    ):
        command = option(command)
    return command


@case.command("create")
@_creation
@connected
def create(
    session: Session,
    spec_id: str,
    data: str | None,
    assignments: tuple[str, ...],
    case_id: str,
    business_key: str,
    version: int,
    request_id: str,
) -> None:
    """Create a case without starting it.

    \b
    Example:
      knhk case create order-approval --data @order.json --id order-1
    """
    request = pb.CreateCaseRequest(
        spec_id=spec_id, spec_version=version, data_json=data_argument(data, assignments),
        case_id=case_id, business_key=business_key, request_id=request_id,
    )  # fmt: skip
    with session.client() as client:
        _show_case(session, client.cases.CreateCase(request, timeout=session.timeout).case)


@case.command("run")
@_creation
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait this long for work of the outside.",
)
@click.option("--watch", is_flag=True, help="Follow the case until it has ended.")
@connected
def run(
    session: Session,
    spec_id: str,
    data: str | None,
    assignments: tuple[str, ...],
    case_id: str,
    business_key: str,
    version: int,
    request_id: str,
    wait: float,
    watch: bool,
) -> None:
    """Create a case and run it until it has ended or waits for the outside.

    \b
    Example:
      knhk case run order-approval --set order=O-1001 --set customer=acme --set amount=250
    """
    request = pb.RunCaseRequest(
        spec_id=spec_id, spec_version=version, data_json=data_argument(data, assignments), case_id=case_id,
        business_key=business_key, request_id=request_id, include_history=True, view=pb.CASE_VIEW_FULL,
    )  # fmt: skip
    if wait:
        request.wait.CopyFrom(Duration(seconds=int(wait), nanos=int(wait % 1 * 1e9)))
    with session.client() as client:
        answer = client.cases.RunCase(request, timeout=session.timeout + wait)
        if watch:
            _follow(session, client, answer.case.case_id, 0, ())
        else:
            _show_run(session, answer)


@case.command("execute")
@click.argument("case_id")
@click.option("--watch", is_flag=True, help="Follow the case until it has ended.")
@request_id_option
@connected
def execute(session: Session, case_id: str, watch: bool, request_id: str) -> None:
    """Start a case if need be and run it until it has ended or waits for the outside.

    \b
    Example:
      knhk case execute order-1
    """
    request = pb.ExecuteCaseRequest(
        case_id=case_id, request_id=request_id, include_history=True, view=pb.CASE_VIEW_FULL
    )
    with session.client() as client:
        answer = client.cases.ExecuteCase(request, timeout=session.timeout)
        if watch:
            _follow(session, client, case_id, 0, ())
        else:
            _show_run(session, answer)


@case.command("start")
@click.argument("case_id")
@request_id_option
@connected
def start(session: Session, case_id: str, request_id: str) -> None:
    """Start a created case.

    \b
    Example:
      knhk case start order-1
    """
    with session.client() as client:
        request = pb.StartCaseRequest(case_id=case_id, request_id=request_id)
        _show_case(session, client.cases.StartCase(request, timeout=session.timeout).case)


@case.command("list")
@click.option(
    "--state", "states", type=click.Choice(STATES), multiple=True, help="Only cases in this state. Repeatable."
)
@click.option("--workflow", "spec_id", default="", help="Only cases of this workflow.")
@click.option("--business-key", default="", help="Only cases with this key.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most cases to list.")
@click.option("--watch", is_flag=True, help="Look again every second.")
@connected
def list_cases(
    session: Session, states: tuple[str, ...], spec_id: str, business_key: str, limit: int, watch: bool
) -> None:
    """List cases.

    \b
    Example:
      knhk case list --state running --workflow order-approval
    """
    numbers = [pb.CaseState.Value(f"CASE_STATE_{each.upper()}") for each in states]
    wanted = pb.CaseFilter(states=numbers, spec_id=spec_id, business_key=business_key)
    with session.client() as client:

        def page(size: int, token: str) -> pb.ListCasesResponse:
            request = pb.ListCasesRequest(filter=wanted, page_size=size, page_token=token)
            return client.cases.ListCases(request, timeout=session.timeout)

        def ask() -> pb.ListCasesResponse:
            return gathered(limit, page, lambda found: found.cases)

        present(session.output, ask, _cases_table, watch)


@case.command("show")
@click.argument("case_id")
@click.option("--watch", is_flag=True, help="Look again every second.")
@click.option("--reveal", is_flag=True, help="Show sensitive data too, instead of ***.")
@connected
def show_case(session: Session, case_id: str, watch: bool, reveal: bool) -> None:
    """Show a case with its data and open work.

    \b
    Example:
      knhk case show order-1
    """
    with session.client() as client:

        def ask() -> pb.GetCaseResponse:
            request = pb.GetCaseRequest(case_id=case_id, view=pb.CASE_VIEW_FULL)
            answer = client.cases.GetCase(request, timeout=session.timeout)
            if reveal:
                unveil(answer.case)
            return answer

        present(session.output, ask, lambda answer: _case_table(answer.case), watch, "case")


@case.command("history")
@click.argument("case_id")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events after this sequence.")
@click.option("--reverse", is_flag=True, help="Newest first.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Most events to show.")
@click.option("--watch", is_flag=True, help="Go on with what happens from now on.")
@connected
def case_history(session: Session, case_id: str, after: int, reverse: bool, limit: int, watch: bool) -> None:
    """Show what happened in a case, as a time line.

    \b
    Example:
      knhk case history order-1
    """
    with session.client() as client:
        if watch:
            if reverse:
                raise Failure(Exit.USAGE, "--watch goes forward", "leave out --reverse")
            _follow(session, client, case_id, after, ())
            return
        show_events(session, history_events(session, client, case_id, after, reverse, limit))


@case.command("watch")
@click.argument("case_id", required=False)
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events after this sequence.")
@click.option(
    "--type", "types", multiple=True, metavar="EVENT", help="Only events of this type, e.g. task_completed. Repeatable."
)
@click.option("--workflow", "spec_id", default="", help="Without a case: only cases of this workflow.")
@connected
def watch_case(session: Session, case_id: str | None, after: int, types: tuple[str, ...], spec_id: str) -> None:
    """Follow a case until it has ended, or without an id every case.

    \b
    Example:
      knhk case watch order-1
    """
    with session.client() as client:
        if case_id is None:
            _follow_all(session, client, spec_id, types)
        else:
            _follow(session, client, case_id, after, types)


@case.command("explain")
@click.argument("case_id")
@click.option("--task", "task_id", default="", help="Only this task.")
@click.option("--all", "everything", is_flag=True, help="Idle and completed tasks too.")
@connected
def explain(session: Session, case_id: str, task_id: str, everything: bool) -> None:
    """Say why a case is where it is.

    \b
    Example:
      knhk case explain order-1
    """
    with session.client() as client:
        answer = client.cases.ExplainCase(
            pb.ExplainCaseRequest(case_id=case_id, task_id=task_id), timeout=session.timeout
        )
    show(answer, session.output, lambda: _explanation(answer, everything or bool(task_id)))


@case.command("cancel")
@click.argument("case_id")
@click.option("--reason", default="", help="Why, for the history.")
@request_id_option
@connected
def cancel(session: Session, case_id: str, reason: str, request_id: str) -> None:
    """End a case as cancelled and withdraw its work.

    \b
    Example:
      knhk case cancel order-1 --reason "the customer changed her mind"
    """
    with session.client() as client:
        request = pb.CancelCaseRequest(case_id=case_id, reason=reason, request_id=request_id)
        _show_case(session, client.cases.CancelCase(request, timeout=session.timeout).case)


@case.command("cancel-task")
@click.argument("case_id")
@click.argument("task_id")
@click.option("--activation", type=click.IntRange(min=1), default=None, help="Which one, when several are live.")
@request_id_option
@connected
def cancel_task(session: Session, case_id: str, task_id: str, activation: int | None, request_id: str) -> None:
    """End a task of a case: its work goes, and nothing flows on from it.

    \b
    Example:
      knhk case cancel-task order-1 check-stock
    """
    with session.client() as client:
        request = pb.CancelTaskRequest(
            case_id=case_id, task_id=task_id, activation=activation or 0, request_id=request_id
        )
        _show_case(session, client.cases.CancelTask(request, timeout=session.timeout).case)


@case.command("trigger")
@click.argument("name")
@click.option("--case", "case_id", default="", help="The case to deliver to.")
@click.option("--business-key", default="", help="The business key of the cases to deliver to.")
@click.option("--all", "every", is_flag=True, help="Deliver to every open case that waits for it.")
@click.option(
    "--keep",
    "lives",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long it is kept when nobody waits; as long as the case lives, or an hour without --case.",
)
@data_option
@set_option
@request_id_option
@connected
def trigger(
    session: Session,
    name: str,
    case_id: str,
    business_key: str,
    data: str | None,
    assignments: tuple[str, ...],
    request_id: str,
    every: bool,
    lives: float | None,
) -> None:
    """Deliver a signal: to one case, to the open cases with a business key, or to all that wait for it.

    \b
    Example:
      knhk case trigger payment-received --business-key order-1 --set amount=250
    """
    if sum((bool(case_id), bool(business_key), every)) != 1:
        raise Failure(
            Exit.USAGE, "a signal needs one of --case, --business-key and --all", "for example --case order-1"
        )
    request = pb.TriggerCaseRequest(
        name=name, case_id=case_id, key=business_key, data_json=data_argument(data, assignments), request_id=request_id
    )
    if lives is not None:
        request.time_to_live.FromNanoseconds(round(lives * 1e9))
    with session.client() as client:
        answer = client.cases.TriggerCase(request, timeout=session.timeout)
    show(answer, session.output, lambda: _deliveries(answer))


@case.command("suspend")
@click.argument("case_id")
@click.option("--reason", default="", help="Why, for the history.")
@request_id_option
@connected
def suspend(session: Session, case_id: str, reason: str, request_id: str) -> None:
    """Hold a running case: nothing new starts.

    \b
    Example:
      knhk case suspend order-1 --reason audit
    """
    with session.client() as client:
        request = pb.SuspendCaseRequest(case_id=case_id, reason=reason, request_id=request_id)
        _show_case(session, client.cases.SuspendCase(request, timeout=session.timeout).case)


@case.command("resume")
@click.argument("case_id")
@click.option("--reason", default="", help="Why, for the history.")
@request_id_option
@connected
def resume(session: Session, case_id: str, reason: str, request_id: str) -> None:
    """Let a suspended case go on.

    \b
    Example:
      knhk case resume order-1
    """
    with session.client() as client:
        request = pb.ResumeCaseRequest(case_id=case_id, reason=reason, request_id=request_id)
        _show_case(session, client.cases.ResumeCase(request, timeout=session.timeout).case)


@case.command("update")
@click.argument("case_id")
@data_option
@set_option
@click.option(
    "--replace", is_flag=True, help="The object given becomes the data; otherwise its keys replace those present."
)
@click.option("--expect", "expected", type=click.IntRange(min=1), help="Only when the case is still at this sequence.")
@request_id_option
@connected
def update(
    session: Session,
    case_id: str,
    data: str | None,
    assignments: tuple[str, ...],
    replace: bool,
    expected: int | None,
    request_id: str,
) -> None:
    """Change the data of a case that has not ended.

    \b
    Example:
      knhk case update order-1 --set amount=99
    """
    patch = data_argument(data, assignments)
    if not patch:
        raise Failure(Exit.USAGE, "there is nothing to change", "give --set NAME=VALUE or --data JSON")
    request = pb.UpdateCaseDataRequest(
        case_id=case_id, data_json=patch, request_id=request_id,
        mode=pb.DATA_UPDATE_MODE_REPLACE if replace else pb.DATA_UPDATE_MODE_MERGE,
    )  # fmt: skip
    if expected is not None:
        request.expected_sequence = expected
    with session.client() as client:
        _show_case(session, client.cases.UpdateCaseData(request, timeout=session.timeout).case)


@case.command("resolve")
@click.argument("incident_id")
@click.option(
    "--action", required=True, type=click.Choice(("retry", "skip", "complete", "fail-case")),
    help="Try again, pass over the task, complete it with --data, or end the case as failed.",
)  # fmt: skip
@click.option("--case", "case_id", default="", help="The case; otherwise what follows @ in the incident's id.")
@data_option
@set_option
@click.option("--reason", default="", help="Why, for the history.")
@request_id_option
@connected
def resolve(
    session: Session,
    incident_id: str,
    action: str,
    case_id: str,
    data: str | None,
    assignments: tuple[str, ...],
    reason: str,
    request_id: str,
) -> None:
    """Decide an open incident.

    \b
    Example:
      knhk case resolve 1@order-1 --action retry
    """
    request = pb.ResolveIncidentRequest(
        case_id=case_id or incident_id.partition("@")[2], incident_id=incident_id, reason=reason, request_id=request_id,
        resolution=pb.IncidentResolution.Value(f"INCIDENT_RESOLUTION_{action.upper().replace('-', '_')}"),
        data_json=data_argument(data, assignments),
    )  # fmt: skip
    if not request.case_id:
        raise Failure(Exit.USAGE, f"{incident_id!r} names no case", "give --case ID")
    with session.client() as client:
        _show_case(session, client.cases.ResolveIncident(request, timeout=session.timeout).case)


@case.command("purge")
@click.argument("case_ids", metavar="[CASE]...", nargs=-1)
@click.option("--state", "states", type=click.Choice(sorted(ENDED)), multiple=True, help="Cases in this state.")
@click.option("--workflow", "spec_id", default="", help="Cases of this workflow.")
@click.option("--business-key", default="", help="Cases with this key.")
@click.option("--older-than", type=click.FloatRange(0), metavar="HOURS", help="Cases that ended so long ago.")
@click.option("--all", "every", is_flag=True, help="Every ended case.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True, help="Most cases.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@request_id_option
@connected
def purge(
    session: Session,
    case_ids: tuple[str, ...],
    states: tuple[str, ...],
    spec_id: str,
    business_key: str,
    older_than: float | None,
    every: bool,
    limit: int,
    dry_run: bool,
    request_id: str,
) -> None:
    """Delete ended cases and their content for good. The log keeps proving that they were there.

    \b
    Example:
      knhk case purge --state completed --older-than 720 --dry-run
      knhk case purge order-1 order-2
    """
    request = pb.PurgeCasesRequest(case_ids=case_ids, dry_run=dry_run, limit=limit, request_id=request_id)
    if states or spec_id or business_key or older_than is not None or every:
        request.filter.CopyFrom(pb.CaseFilter(spec_id=spec_id, business_key=business_key))
        request.filter.states.extend(pb.CaseState.Value(f"CASE_STATE_{each.upper()}") for each in states)
        if older_than is not None:
            request.filter.ended_before.FromNanoseconds(time.time_ns() - round(older_than * 3_600 * 1e9))
    elif not case_ids:
        raise Failure(Exit.USAGE, "nothing says which cases to purge", "name cases, give a filter, or --all")
    with session.client() as client:
        answer = client.cases.PurgeCases(request, timeout=session.timeout)
    show(answer, session.output, lambda: _purged(answer, dry_run))


# ------------------------------------------------------------------------------------------------- shared with history
def history_events(
    session: Session, client: Client, case_id: str, after: int = 0, reverse: bool = False, limit: int | None = None
) -> Iterator[pb.HistoryEvent]:
    """The events of a case, page by page."""
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        request = pb.GetCaseHistoryRequest(case_id=case_id, after_sequence=after, page_size=size, reverse=reverse)
        page = client.cases.GetCaseHistory(request, timeout=session.timeout)
        yield from page.events
        if left is not None:
            left -= len(page.events)
        after = page.next_after_sequence
        if not after:
            return


def show_events(session: Session, events: Iterator[pb.HistoryEvent]) -> None:
    """Events as a time line, or as one list."""
    if session.output != "table":
        structured([plain(event) for event in events], session.output)
        return
    line = Timeline()
    for event in events:
        line.print(event)


def _purged(answer: pb.PurgeCasesResponse, dry_run: bool) -> RenderableType:
    count = answer.purged_count
    lines = [f"{count} {'case' if count == 1 else 'cases'} {'would be ' if dry_run else ''}purged"]
    lines += [safe(f"left alone: {each.reason.message}") for each in answer.skipped]
    if answer.more:
        lines.append("more cases match: repeat it")
    return Text("\n".join(lines))


# ----------------------------------------------------------------------------------------------------------- following
def _follow(session: Session, client: Client, case_id: str, after: int, types: Sequence[str]) -> None:
    """Prints the events of a case until it has ended, and goes on after a daemon that restarts."""
    emit = _emitter(session, with_case=False)
    position = after
    ended = False

    def messages() -> Iterator[bool]:
        nonlocal position, ended
        request = pb.WatchCaseRequest(case_id=case_id, after_sequence=position, event_types=types)
        for message in client.cases.WatchCase(request):
            if message.HasField("event"):
                emit(message.event)
            position = max(position, message.sequence)
            yield True
        ended = True

    _reconnecting(messages, lambda: ended)


def _follow_all(session: Session, client: Client, spec_id: str, types: Sequence[str]) -> None:
    emit = _emitter(session, with_case=True)
    token = ""

    def messages() -> Iterator[bool]:
        nonlocal token
        request = pb.WatchCasesRequest(filter=pb.CaseFilter(spec_id=spec_id), resume_token=token, event_types=types)
        for message in client.cases.WatchCases(request):
            if message.HasField("event"):
                emit(message.event)
            token = message.resume_token or token
            yield True

    _reconnecting(messages, lambda: False)


def _reconnecting(messages: Callable[[], Iterator[bool]], done: Callable[[], bool]) -> None:
    """Reads a stream; when the daemon goes away, tries again for a while."""
    attempt = 0
    connected = False
    while True:
        try:
            for _ in messages():
                attempt, connected = 0, True
            if done():
                return
        except grpc.RpcError as error:
            code = cast("grpc.Call", error).code()  # what a call raises is that call
            if code is not grpc.StatusCode.UNAVAILABLE or attempt >= len(RECONNECT_SECONDS):
                raise
        except WrongServer:
            raise  # somebody answers, who is not the daemon
        except NotReachable:  # nobody answers where the server is checked before the call
            if not connected or attempt >= len(RECONNECT_SECONDS):
                raise
        time.sleep(RECONNECT_SECONDS[min(attempt, len(RECONNECT_SECONDS) - 1)])
        attempt += 1


def _emitter(session: Session, *, with_case: bool) -> Callable[[pb.HistoryEvent], None]:
    if session.output == "table":
        return Timeline(with_case=with_case).print

    def emit(event: pb.HistoryEvent) -> None:
        value = plain(event)
        if session.output == "json":  # one line each, so that a reader can begin before the end
            sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write("---\n" + yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
        sys.stdout.flush()

    return emit


# -------------------------------------------------------------------------------------------------------------- tables
def _show_case(session: Session, found: pb.Case) -> None:
    show(found, session.output, lambda: _case_table(found))


def _show_run(session: Session, answer: pb.RunCaseResponse | pb.ExecuteCaseResponse) -> None:
    if session.output != "table":
        show(answer, session.output, lambda: "")
        return
    veil(answer)
    disarm(answer)
    line = Timeline()
    for event in answer.history:
        line.print(event)
    console().print(Group(Text(""), _case_table(answer.case)))
    if answer.open_work_items:
        console().print(Group(Text(""), Text("Waiting for:", style="bold"), items_table(answer.open_work_items)))


def _cases_table(answer: pb.ListCasesResponse) -> RenderableType:
    if not answer.cases:
        return Text("No cases. `knhk case run WORKFLOW` makes one.", style="dim")
    table = grid("case", "workflow", ">version", "state", ">events", ">work", ">incidents", ">changed", "key")
    for each in answer.cases:
        incidents = Text(str(each.open_incident_count), style="bold red") if each.open_incident_count else Text("")
        table.add_row(
            each.case_id, each.spec_id, str(each.spec_version), stated(case_state(each.state)), str(each.sequence),
            str(each.open_work_item_count or ""), incidents, ago(each.update_time), each.business_key,
        )  # fmt: skip
    if answer.next_page_token:
        return Group(table, Text("There are more; raise --limit.", style="dim"))
    return table


def _deliveries(answer: pb.TriggerCaseResponse) -> RenderableType:
    table = grid("case", "signal", "task", ">activation")
    for one in answer.deliveries:
        activation = str(one.activation) if one.activation else ""
        table.add_row(one.case_id, OUTCOMES[one.outcome], one.task_id, activation)
    return table if table.row_count else Text("No open case takes it.", style="dim")


def _case_table(found: pb.Case) -> RenderableType:
    head = pairs(
        (
            ("case", found.case_id),
            ("workflow", f"{found.spec_id} (version {found.spec_version})"),
            ("state", stated(case_state(found.state))),
            ("reason", found.reason),
            ("business key", found.business_key),
            ("created", moment(found.create_time) + (f" by {short(found.created_by)}" if found.created_by else "")),
            ("changed", moment(found.update_time)),
            ("ended", moment(found.end_time)),
            ("events", str(found.sequence)),
            ("open work", str(found.open_work_item_count or "")),
            ("open incidents", str(found.open_incident_count or "")),
            ("data", _data(found.data_json)),
        )
    )
    if not found.live_tasks:
        return head
    live = grid("task", "net", "status", ">open")
    for each in found.live_tasks:
        live.add_row(each.task_id, each.net, stated(each.status), str(each.open_instances))
    return Group(head, Text(""), live)


def _data(data_json: bytes) -> str:
    if not data_json:
        return ""
    data = json.loads(data_json)
    text = json.dumps(data, ensure_ascii=False)
    return safe(text if len(text) <= 100 else json.dumps(data, ensure_ascii=False, indent=2))


def _explanation(answer: pb.ExplainCaseResponse, everything: bool) -> RenderableType:
    head = Text.assemble((answer.case_id, "bold"), " is ", stated(case_state(answer.state)), f". {answer.sentence}")
    lines: list[Text] = [head]
    quiet = {pb.TASK_STATUS_IDLE, pb.TASK_STATUS_COMPLETED, pb.TASK_STATUS_UNREACHABLE}
    left_out = 0
    for task in answer.tasks:
        if task.status in quiet and not everything:
            left_out += 1
            continue
        status = pb.TaskStatus.Name(task.status).removeprefix("TASK_STATUS_").lower()
        name = f"{task.net}/{task.task_id}" if task.net else task.task_id
        lines.append(Text.assemble("\n", (name, "bold"), " is ", stated(status), f". {task.sentence}"))
        lines += map(Text, _reasons(task))
    for incident in answer.incidents:
        title = (f"Incident {incident.incident_id}", "bold red")
        mend = f"    knhk case resolve {incident.incident_id} --action retry|skip|complete|fail-case"
        lines += (Text.assemble("\n", title, f" ({incident.kind}): {incident.message}"), Text(mend, style="dim"))
    if left_out:
        lines.append(Text(f"\n{left_out} idle or completed tasks are left out; --all shows them.", style="dim"))
    return Group(*lines)


def _reasons(task: pb.TaskExplanation) -> Iterator[str]:
    """What a task waits for, line by line."""
    for wait in task.waits_for:
        detail = f": {wait.detail}" if wait.detail else ""
        yield f"    waits for {wait.kind.replace('_', ' ')} {wait.name}{detail}"
    if task.arrived or task.missing:
        arrived, missing = ", ".join(task.arrived) or "nothing", ", ".join(task.missing) or "nothing"
        yield f"    its {task.join_kind or 'plain'} join has {arrived}; missing: {missing}"
    for guard in task.guards:
        value = text_of(guard.value_json) or "?"
        result = f"cannot be read: {guard.error}" if guard.error else f"is {value}"
        given = f" with {text_of(guard.inputs_json)}" if guard.inputs_json else ""
        yield f"    the guard of {guard.flow}, {guard.expression}, {result}{given}"
    for path in task.or_join_paths:
        yield f"    the token at {path.token} can still reach {path.input}: {' -> '.join(path.path)}"
