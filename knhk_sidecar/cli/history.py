"""`knhk history`: what happened, for reading and for keeping."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final, TextIO

import click
import msgspec
from rich.console import Console
from rich.progress import track

from knhk_sidecar.api import pb
from knhk_sidecar.cli.cases import history_events, show_events
from knhk_sidecar.cli.failure import Exit, Failure, safe
from knhk_sidecar.cli.pages import PAGE
from knhk_sidecar.cli.render import plain, structured
from knhk_sidecar.cli.session import FILE, OUTPUTS, Session, connected, read_file
from knhk_sidecar.client import Client
from knhk_workflow import InvalidInput, prove_export, read_public_key

WITHHELD: Final = (
    "the case has sensitive data: its records are withheld, and what is shown is as true as the signature\n"
)


@click.group()
def history() -> None:
    """The history of cases: show, export, verify.

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
@click.option("--file", type=FILE, help="Where to write; otherwise standard output.")
@click.option("--proof", is_flag=True, help="One case as a document that `knhk history verify` proves offline.")
@connected
def export(session: Session, case_ids: tuple[str, ...], spec_id: str, file: Path | None, proof: bool) -> None:
    """Write the history of cases as JSON lines, one event per line; or one case with everything that proves it.

    \b
    Example:
      knhk history export order-1 order-2 --file history.jsonl
      knhk history export order-1 --proof --file order-1.json
    """
    if proof:
        _export_proof(session, case_ids, file)
        return
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


@history.command("verify")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--hash", "known", default="", metavar="HEX", help="The hash of its newest position, if known.")
@click.option(
    "--key",
    "key",
    type=FILE,
    help="The daemon's public key, SIGNING_KEY.pub: it must have signed the file.",
)
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True)
def verify(file: Path, known: str, key: Path | None, output: str) -> None:
    """Prove an exported case, from the file alone; exit code 1 names the first event that is not what was recorded.

    With --key nobody but the daemon can have written it.

    \b
    Example:
      knhk history verify order-1.json --key SIGNING_KEY.pub
    """
    try:
        public = read_public_key(read_file(key)) if key is not None else None
    except InvalidInput as error:
        raise Failure(Exit.USAGE, f"{key}: {error.message}", "use the SIGNING_KEY.pub beside the store") from error
    try:
        proof = prove_export(read_file(file), public)
    except InvalidInput as error:
        raise Failure(
            Exit.USAGE, f"{file}: {error.message}", "export it with `knhk history export CASE --proof`"
        ) from error
    problem = proof.problem
    if not problem and known and known.lower() != proof.hash:
        problem = f"log position {proof.position} has the hash {proof.hash}, not the one that is known"
    if output != "table":
        structured({**msgspec.structs.asdict(proof), "problem": problem, "proven": not problem}, output)
    if problem:
        where = f"the first bad event is {proof.sequence}: " if proof.sequence else ""
        raise Failure(Exit.FAILED, f"{file}: {where}{problem}", "do not rely on this file; export the case again")
    if output == "table":
        doubt = "" if key is not None else ", which --key would prove"
        sys.stdout.write(
            f"{file}: case {safe(proof.case_id)} is proven: {proof.events} events in {proof.records} records, "
            f"{proof.tied} of them tied to the log, the newest at position {proof.position}\nhash {proof.hash}\n"
            + (f"signed by key {proof.signed_by}{doubt}\n" if proof.signed_by else "not signed\n")
            + (WITHHELD if proof.withheld else "")
        )


def _export_proof(session: Session, case_ids: tuple[str, ...], file: Path | None) -> None:
    if len(case_ids) != 1:
        raise Failure(Exit.USAGE, "--proof takes exactly one case", "name one case")
    with session.client() as client:
        request = pb.ExportCaseRequest(case_id=case_ids[0])
        document = b"".join(piece.chunk for piece in client.cases.ExportCase(request))
    if file is None:
        sys.stdout.buffer.write(document)
        return
    try:
        file.write_bytes(document)
    except OSError as error:
        raise Failure(Exit.FAILED, f"{file}: {error.strerror}", "choose another --file") from error
    sys.stderr.write(f"case {safe(case_ids[0])} written to {file}\n")


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
        found += [each.case_id for each in page.cases]  # the ids only: there may be a million cases
        token = page.next_page_token
        if not token:
            return found
