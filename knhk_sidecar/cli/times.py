"""`knhk time`: the time of a daemon that was started with virtual time."""

from __future__ import annotations

import click
from google.protobuf.duration_pb2 import Duration
from rich.console import RenderableType

from knhk_sidecar.api import pb
from knhk_sidecar.cli.failure import Exit, Failure
from knhk_sidecar.cli.moments import length_of, time_of
from knhk_sidecar.cli.render import moment, pairs, show
from knhk_sidecar.cli.session import Session, connected, request_id_option


@click.group("time")
def time_() -> None:
    """The time of a daemon started with `knhk dev --virtual-time`: show it, skip ahead.

    \b
    Example:
      knhk time advance 14d
    """


@time_.command("show")
@connected
def show_time(session: Session) -> None:
    """Show what time it is there, and when something is due next.

    \b
    Example:
      knhk time show
    """
    _ask(session, pb.AdvanceTimeRequest(duration=Duration()))


@time_.command("advance")
@click.argument("duration", required=False)
@click.option("--until", metavar="TIME", help="Up to this time, as 2030-01-31T12:00:00Z.")
@click.option("--next", "to_next", is_flag=True, help="To the next moment at which something is due.")
@request_id_option
@connected
def advance(session: Session, duration: str | None, until: str | None, to_next: bool, request_id: str) -> None:
    """Let time pass: what is due on the way is done in its order, and what follows from it by itself.

    \b
    Example:
      knhk time advance 14d
      knhk time advance --next
    """
    if (duration is not None) + (until is not None) + to_next != 1:
        raise Failure(Exit.USAGE, "give a duration, --until or --next", "for example knhk time advance 14d")
    request = pb.AdvanceTimeRequest(request_id=request_id, to_next=True)
    if duration is not None:
        request.duration.CopyFrom(length_of("DURATION", duration))
    elif until is not None:
        request.until.CopyFrom(time_of("--until", until))
    _ask(session, request)


def _ask(session: Session, request: pb.AdvanceTimeRequest) -> None:
    with session.client() as client:
        answer = client.admin.AdvanceTime(request, timeout=session.timeout)
    show(answer, session.output, lambda: _page(answer))


def _page(answer: pb.AdvanceTimeResponse) -> RenderableType:
    return pairs(
        (
            ("time", moment(answer.time)),
            ("stops", str(answer.stop_count or "")),
            ("next", moment(answer.next_time) or "nothing is due"),
        )
    )
