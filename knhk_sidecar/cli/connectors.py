"""`knhk connector` and `knhk dead-letter`: what tasks may call, and calls that were given up."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from rich.console import RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.pages import gathered
from knhk_sidecar.cli.render import ago, grid, pairs, show, text_of
from knhk_sidecar.cli.session import Session, connected, read_file, request_id_option

PROBE_SECONDS: Final = 10.0  # a probe takes up to five
_HEALTH: Final = {
    pb.HEALTH_STATE_HEALTHY: ("reachable", "green"),
    pb.HEALTH_STATE_UNHEALTHY: ("unreachable", "bold red"),
}


@click.group()
def connector() -> None:
    """What tasks may call: list, probe, put, delete.

    \b
    Example:
      knhk connector list
    """


@connector.command("list")
@connected
def list_connectors(session: Session) -> None:
    """List connectors with their calls, breakers and connections.

    \b
    Example:
      knhk connector list
    """
    whole = all_connectors(session)
    show(whole, session.output, lambda: _table(whole))


@connector.command("probe")
@connected
def probe(session: Session) -> None:
    """Try whether the other side of each connector can be reached.

    \b
    Example:
      knhk connector probe
    """
    whole = all_connectors(session, max(session.timeout, PROBE_SECONDS))
    show(whole, session.output, lambda: _table(whole))


@connector.command("put")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE|-")
@click.option("--kind", default="http", show_default=True, help="http, grpc, or a kind of another package.")
@click.option("--default", "default", is_flag=True, help="For tasks with a request that name no connector.")
@request_id_option
@connected
def put(session: Session, name: str, file: Path, kind: str, default: bool, request_id: str) -> None:
    """Create or replace a connector from a JSON file with its settings.

    \b
    Example:
      knhk connector put billing billing.json
    """
    request = pb.PutConnectorRequest(
        name=name, kind=kind, config_json=read_file(file), is_default=default, request_id=request_id
    )
    with session.client() as client:
        answer = client.admin.PutConnector(request, timeout=session.timeout)
    show(answer, session.output, lambda: f"Connector {answer.connector.name} can be named by tasks.")


@connector.command("delete")
@click.argument("name")
@click.option("--force", is_flag=True, help="Although workflows name it; their tasks become incidents.")
@request_id_option
@connected
def delete(session: Session, name: str, force: bool, request_id: str) -> None:
    """Remove a connector.

    \b
    Example:
      knhk connector delete billing
    """
    with session.client() as client:
        request = pb.DeleteConnectorRequest(name=name, force=force, request_id=request_id)
        answer = client.admin.DeleteConnector(request, timeout=session.timeout)
    show(answer, session.output, lambda: f"Removed {answer.name}.")


@click.group("dead-letter")
def dead_letter() -> None:
    """Calls that were given up: list, retry, discard.

    \b
    Example:
      knhk dead-letter list
    """


@dead_letter.command("list")
@click.option("--case", "case_id", default="", help="Only of this case.")
@click.option("--connector", "target", default="", help="Only of this connector.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most to list.")
@connected
def list_letters(session: Session, case_id: str, target: str, limit: int) -> None:
    """List calls that were given up, with what was to be sent and what went wrong.

    \b
    Example:
      knhk dead-letter list --connector billing
    """
    with session.client() as client:

        def page(size: int, token: str) -> pb.ListDeadLettersResponse:
            request = pb.ListDeadLettersRequest(case_id=case_id, target=target, page_size=size, page_token=token)
            return client.admin.ListDeadLetters(request, timeout=session.timeout)

        whole = gathered(limit, page, lambda found: found.dead_letters)
    show(whole, session.output, lambda: _letters(whole))


@dead_letter.command("retry")
@click.argument("dead_letter_id", metavar="ID")
@request_id_option
@connected
def retry(session: Session, dead_letter_id: str, request_id: str) -> None:
    """Make the call again, under the same idempotency key.

    \b
    Example:
      knhk dead-letter retry 1@order-17
    """
    with session.client() as client:
        request = pb.RetryDeadLetterRequest(dead_letter_id=dead_letter_id, request_id=request_id)
        answer = client.admin.RetryDeadLetter(request, timeout=session.timeout)
    show(answer, session.output, lambda: _letter(answer.dead_letter))


@dead_letter.command("discard")
@click.argument("dead_letter_id", metavar="ID")
@click.option("--reason", default="", help="Why, for the history.")
@request_id_option
@connected
def discard(session: Session, dead_letter_id: str, reason: str, request_id: str) -> None:
    """Go on without the effect.

    \b
    Example:
      knhk dead-letter discard 1@order-17 --reason "done by hand"
    """
    with session.client() as client:
        request = pb.DiscardDeadLetterRequest(dead_letter_id=dead_letter_id, reason=reason, request_id=request_id)
        answer = client.admin.DiscardDeadLetter(request, timeout=session.timeout)
    show(answer, session.output, lambda: _letter(answer.dead_letter))


def all_connectors(session: Session, probe_seconds: float = 0.0) -> pb.ListConnectorsResponse:
    """Every connector. With `probe_seconds` it is tried whether the other side of each can be reached; they bound the
    wait for an answer."""
    with session.client() as client:

        def page(size: int, token: str) -> pb.ListConnectorsResponse:
            request = pb.ListConnectorsRequest(page_size=size, page_token=token, probe=bool(probe_seconds))
            return client.admin.ListConnectors(request, timeout=probe_seconds or session.timeout)

        return gathered(None, page, lambda found: found.connectors)


def _table(answer: pb.ListConnectorsResponse) -> RenderableType:
    if not answer.connectors:
        return Text("No connectors. `knhk connector put NAME FILE` adds one.", style="dim")
    table = grid("connector", "kind", "default", "from", "delivery", "breaker", ">calls", ">waiting", ">open", "health")
    for each in answer.connectors:
        word, style = _HEALTH.get(each.health, ("", ""))
        table.add_row(
            each.name, each.kind, "yes" if each.is_default else "", "file" if each.shared else "call", each.delivery,
            each.breaker_state, str(each.call_active), str(each.call_waiting), str(each.pool_size),
            Text.assemble((word, style), f" {each.message}" if each.message else ""),
        )  # fmt: skip
    return table


def _letters(answer: pb.ListDeadLettersResponse) -> RenderableType:
    if not answer.dead_letters:
        return Text("No dead letters.", style="dim")
    table = grid("id", "connector", "task", ">attempts", ">given up", "why")
    for each in answer.dead_letters:
        table.add_row(
            each.dead_letter_id, each.target, each.task_id, str(each.attempt_count), ago(each.create_time),
            each.last_error.message,
        )  # fmt: skip
    return table


def _letter(each: pb.DeadLetter) -> RenderableType:
    return pairs(
        (
            ("dead letter", each.dead_letter_id),
            ("status", each.status),
            ("connector", each.target),
            ("task", each.task_id),
            ("was", each.last_error.message),
            ("request", text_of(each.payload_json)),
        )
    )
