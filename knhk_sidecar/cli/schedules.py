"""`knhk schedule`: cases started by the calendar."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.moments import length_of, time_of
from knhk_sidecar.cli.pages import gathered
from knhk_sidecar.cli.render import grid, moment, pairs, present, short, show, text_of
from knhk_sidecar.cli.session import Session, connected, data_argument, data_option, request_id_option, set_option
from knhk_workflow import CATCH_UPS, OVERLAPS


@click.group()
def schedule() -> None:
    """Cases started by the calendar: create, list, show, update, pause, resume, trigger, backfill, delete.

    \b
    Example:
      knhk schedule create nightly order-approval --every "0 2 * * *" --time-zone Europe/Berlin
    """


_id = click.argument("schedule_id", metavar="SCHEDULE")
_overlap = click.option(
    "--overlap", type=click.Choice([name.replace("_", "-") for name in OVERLAPS]), help="Instead of the schedule's own."
)


@schedule.command("create")
@_id
@click.argument("spec_id", metavar="WORKFLOW")
@click.option("--every", required=True, metavar="CRON|INTERVAL", help='"0 9 * * MON-FRI", or R/PT15M.')
@click.option("--time-zone", default="", metavar="ZONE", help="Of a cron line, for example Europe/Berlin; else UTC.")
@click.option("--version", type=click.IntRange(min=0), default=0, help="Version of the workflow; 0 is the newest.")
@data_option
@set_option
@click.option("--business-key", default="", metavar="KEY", help="Business key of its cases.")
@click.option("--time-key", default="", metavar="NAME", help="Data key that gets the time of the occurrence.")
@click.option(
    "--overlap", type=click.Choice([name.replace("_", "-") for name in OVERLAPS]), default="skip", show_default=True,
    help="When a case of its is still open.",
)  # fmt: skip
@click.option(
    "--catch-up", type=click.Choice(CATCH_UPS), default="latest", show_default=True,
    help="Which of the occurrences missed while the daemon was down are made up for.",
)  # fmt: skip
@click.option("--catch-up-window", metavar="DURATION", help="Not those that are older; one day unless given.")
@click.option("--from", "start", metavar="TIME", help="No occurrence before it, for example 2030-01-01T00:00:00Z.")
@click.option("--until", "end", metavar="TIME", help="No occurrence behind it.")
@click.option("--description", default="", help="Text for people.")
@click.option("--paused", is_flag=True, help="Create it paused.")
@click.option("--replace", is_flag=True, help="Replace the schedule of this id.")
@request_id_option
@connected
def create(
    session: Session,
    schedule_id: str,
    spec_id: str,
    every: str,
    time_zone: str,
    version: int,
    data: str | None,
    assignments: tuple[str, ...],
    business_key: str,
    time_key: str,
    overlap: str,
    catch_up: str,
    catch_up_window: str | None,
    start: str | None,
    end: str | None,
    description: str,
    paused: bool,
    replace: bool,
    request_id: str,
) -> None:
    """Start a case of a workflow at every occurrence.

    \b
    Example:
      knhk schedule create nightly order-approval --every "0 2 * * *" --time-zone Europe/Berlin --overlap buffer-one
      knhk schedule create probe health-check --every R/PT15M --catch-up none
    """
    spec = pb.ScheduleSpec(
        spec_id=spec_id,
        version=version,
        every=every,
        time_zone=time_zone,
        data_json=data_argument(data, assignments),
        business_key=business_key,
        time_key=time_key,
        overlap=_policy(overlap),
        catch_up=pb.ScheduleCatchUp.Value(f"SCHEDULE_CATCH_UP_{catch_up.upper()}"),
        catch_up_window=length_of("--catch-up-window", catch_up_window) if catch_up_window else None,
        start_time=time_of("--from", start) if start else None,
        end_time=time_of("--until", end) if end else None,
        description=description,
    )
    with session.client() as client:
        if replace:
            changed = pb.UpdateScheduleRequest(schedule_id=schedule_id, spec=spec, request_id=request_id)
            made = client.schedules.UpdateSchedule(changed, timeout=session.timeout).schedule
        else:
            wanted = pb.CreateScheduleRequest(schedule_id=schedule_id, spec=spec, paused=paused, request_id=request_id)
            made = client.schedules.CreateSchedule(wanted, timeout=session.timeout).schedule
    show(made, session.output, lambda: _page(made))


@schedule.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most schedules to list.")
@connected
def list_schedules(session: Session, limit: int) -> None:
    """List schedules.

    \b
    Example:
      knhk schedule list
    """
    with session.client() as client:

        def page(size: int, token: str) -> pb.ListSchedulesResponse:
            request = pb.ListSchedulesRequest(page_size=size, page_token=token)
            return client.schedules.ListSchedules(request, timeout=session.timeout)

        whole = gathered(limit, page, lambda found: found.schedules)
    show(whole, session.output, lambda: _table(whole))


@schedule.command("show")
@_id
@click.option("--watch", is_flag=True, help="Show it again whenever it changes, until interrupted.")
@connected
def show_schedule(session: Session, schedule_id: str, watch: bool) -> None:
    """Show a schedule: what comes next, and what became of the last occurrences.

    \b
    Example:
      knhk schedule show nightly
    """
    request = pb.GetScheduleRequest(schedule_id=schedule_id)
    with session.client() as client:
        present(
            session.output,
            lambda: client.schedules.GetSchedule(request, timeout=session.timeout).schedule,
            _page,
            watch,
        )


@schedule.command("pause")
@_id
@click.option("--reason", default="", help="Why, for people.")
@request_id_option
@connected
def pause(session: Session, schedule_id: str, reason: str, request_id: str) -> None:
    """No more occurrences until it is resumed.

    \b
    Example:
      knhk schedule pause nightly --reason holidays
    """
    request = pb.PauseScheduleRequest(schedule_id=schedule_id, reason=reason, request_id=request_id)
    with session.client() as client:
        found = client.schedules.PauseSchedule(request, timeout=session.timeout).schedule
    show(found, session.output, lambda: _page(found))


@schedule.command("resume")
@_id
@request_id_option
@connected
def resume(session: Session, schedule_id: str, request_id: str) -> None:
    """Go on with the first occurrence after now.

    \b
    Example:
      knhk schedule resume nightly
    """
    request = pb.ResumeScheduleRequest(schedule_id=schedule_id, request_id=request_id)
    with session.client() as client:
        found = client.schedules.ResumeSchedule(request, timeout=session.timeout).schedule
    show(found, session.output, lambda: _page(found))


@schedule.command("trigger")
@_id
@_overlap
@data_option
@set_option
@request_id_option
@connected
def trigger(
    session: Session,
    schedule_id: str,
    overlap: str | None,
    data: str | None,
    assignments: tuple[str, ...],
    request_id: str,
) -> None:
    """Start one case now, paused or not.

    \b
    Example:
      knhk schedule trigger nightly --overlap allow
    """
    request = pb.TriggerScheduleRequest(
        schedule_id=schedule_id,
        overlap=_policy(overlap),
        data_json=data_argument(data, assignments),
        request_id=request_id,
    )
    with session.client() as client:
        found = client.schedules.TriggerSchedule(request, timeout=session.timeout).schedule
    show(found, session.output, lambda: _page(found))


@schedule.command("backfill")
@_id
@click.option("--from", "start", required=True, metavar="TIME", help="From here on, as 2030-01-01T00:00:00Z.")
@click.option("--until", "end", required=True, metavar="TIME", help="Up to, but not at, this time.")
@_overlap
@request_id_option
@connected
def backfill(session: Session, schedule_id: str, start: str, end: str, overlap: str | None, request_id: str) -> None:
    """Take past occurrences as due now; those that have had their case get no other one.

    \b
    Example:
      knhk schedule backfill nightly --from 2030-01-01T00:00:00Z --until 2030-01-08T00:00:00Z --overlap buffer-all
    """
    request = pb.BackfillScheduleRequest(
        schedule_id=schedule_id,
        start_time=time_of("--from", start),
        end_time=time_of("--until", end),
        overlap=_policy(overlap),
        request_id=request_id,
    )
    with session.client() as client:
        found = client.schedules.BackfillSchedule(request, timeout=session.timeout).schedule
    show(found, session.output, lambda: _page(found))


@schedule.command("delete")
@_id
@click.option("--yes", is_flag=True, help="Do not ask.")
@request_id_option
@connected
def delete(session: Session, schedule_id: str, yes: bool, request_id: str) -> None:
    """No more of it; cases that it has started stay.

    \b
    Example:
      knhk schedule delete nightly --yes
    """
    if not yes:
        click.confirm(f"Delete schedule {schedule_id}?", abort=True, err=True)
    with session.client() as client:
        request = pb.DeleteScheduleRequest(schedule_id=schedule_id, request_id=request_id)
        answer = client.schedules.DeleteSchedule(request, timeout=session.timeout)
    show(answer, session.output, lambda: f"Deleted {answer.schedule_id}.")


def _policy(name: str | None) -> pb.ScheduleOverlap.ValueType:
    return pb.ScheduleOverlap.Value(f"SCHEDULE_OVERLAP_{(name or 'unspecified').replace('-', '_').upper()}")


def _named(overlap: pb.ScheduleOverlap.ValueType) -> str:
    return pb.ScheduleOverlap.Name(overlap).removeprefix("SCHEDULE_OVERLAP_").lower().replace("_", "-")


def _caught_up(spec: pb.ScheduleSpec) -> str:
    policy = pb.ScheduleCatchUp.Name(spec.catch_up).removeprefix("SCHEDULE_CATCH_UP_").lower()
    return policy if policy == "none" else f"{policy}, not older than {_length(spec.catch_up_window.seconds)}"


def _length(seconds: int) -> str:
    """`1d12h`."""
    parts = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _table(answer: pb.ListSchedulesResponse) -> RenderableType:
    if not answer.schedules:
        return Text("No schedules. `knhk schedule create` adds one.", style="dim")
    table = grid("schedule", "workflow", "every", "next", ">started", ">skipped", ">missed", ">failed")
    for each in answer.schedules:
        coming = moment(each.next_times[0]) if each.next_times else "paused" if each.paused else "never"
        table.add_row(
            each.schedule_id, each.spec.spec_id, f"{each.spec.every} {each.spec.time_zone}".rstrip(), coming,
            str(each.started_count), str(each.skipped_count), str(each.missed_count), str(each.failed_count),
        )  # fmt: skip
    return table


def _page(found: pb.Schedule) -> RenderableType:
    spec = found.spec
    version = f", version {spec.version}" if spec.version else ""
    counts = f"{found.started_count} started, {found.skipped_count} skipped"
    counts += f", {found.missed_count} missed, {found.failed_count} failed"
    head = pairs(
        (
            ("schedule", found.schedule_id),
            ("description", spec.description),
            ("workflow", f"{spec.spec_id}{version}"),
            ("every", f"{spec.every} {spec.time_zone}".rstrip()),
            ("from", moment(spec.start_time)),
            ("until", moment(spec.end_time)),
            ("data", text_of(spec.data_json) if spec.data_json not in (b"", b"{}") else ""),
            ("business key", spec.business_key),
            ("overlap", _named(spec.overlap)),
            ("catch up", _caught_up(spec)),
            ("paused", (found.pause_reason or "yes") if found.paused else ""),
            ("next", ", ".join(moment(each) for each in found.next_times)),
            ("open cases", ", ".join(found.running_case_ids)),
            ("waiting", str(found.waiting_count or "")),
            (
                "occurrences",
                counts,
            ),
            ("created", moment(found.create_time) + (f" by {short(found.created_by)}" if found.created_by else "")),
        )
    )
    if not found.recent_runs:
        return head
    table = grid("occurrence", "outcome", "case", "")
    for run in found.recent_runs:
        table.add_row(moment(run.scheduled_time), run.outcome, run.case_id, run.message)
    return Group(head, Text(""), table)
