"""`knhk history`: what happened, for reading and for keeping."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TextIO

import click
from rich.console import Console
from rich.progress import track

from knhk_sidecar.api import pb
from knhk_sidecar.cli.cases import PAGE, history_events, show_events
from knhk_sidecar.cli.failure import Exit, Failure
from knhk_sidecar.cli.render import plain
from knhk_sidecar.cli.session import Session, connected
from knhk_sidecar.client import Client


@click.group()
def history() -> None:
    """The history of cases: show, export.

    \b
    Example:
      knhk history export --file history.jsonl
    """


@history.command("show")
@click.argument("case_id")
@connected
def show(session: Session, case_id: str) -> None:
    """Show the whole history of a case, as a time line.

    \b
    Example:
      knhk history show order-1
    """
    with session.client() as client:
        show_events(session, history_events(session, client, case_id))


@history.command("export")
@click.argument("case_ids", nargs=-1, metavar="[CASE]...")
@click.option("--workflow", "spec_id", default="", help="Without case ids: only cases of this workflow.")
@click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), help="Where to write; otherwise standard output."
)
@connected
def export(session: Session, case_ids: tuple[str, ...], spec_id: str, file: Path | None) -> None:
    """Write the history of cases as JSON lines, one event per line.

    \b
    Example:
      knhk history export order-1 order-2 --file history.jsonl
    """
    with session.client() as client:
        if file is None:
            _write(session, client, case_ids, spec_id, sys.stdout)
            return
        try:
            with file.open("w", encoding="utf-8") as stream:
                cases, events = _write(session, client, case_ids, spec_id, stream)
        except OSError as error:
            raise Failure(Exit.FAILED, f"{file}: {error.strerror}", "choose another --file") from error
    sys.stderr.write(f"{events} events of {cases} cases written to {file}\n")


def _write(
    session: Session, client: Client, case_ids: tuple[str, ...], spec_id: str, stream: TextIO
) -> tuple[int, int]:

    chosen = case_ids or tuple(_every_case(session, client, spec_id))
    events = 0
    if stream.isatty() or not sys.stderr.isatty():
        for case_id in chosen:
            for event in history_events(session, client, case_id):
                stream.write(json.dumps(plain(event), ensure_ascii=False) + "\n")
                events += 1
        return len(chosen), events

    for case_id in track(chosen, description="Exporting", console=Console(stderr=True), transient=True):
        for event in history_events(session, client, case_id):
            stream.write(json.dumps(plain(event), ensure_ascii=False) + "\n")
            events += 1
    return len(chosen), events


def _every_case(session: Session, client: Client, spec_id: str) -> list[str]:

    found: list[str] = []
    token = ""
    while True:
        request = pb.ListCasesRequest(filter=pb.CaseFilter(spec_id=spec_id), page_size=PAGE, page_token=token)
        page = client.cases.ListCases(request, timeout=session.timeout)
        found += [each.case_id for each in page.cases]
        token = page.next_page_token
        if not token:
            return found
