"""`knhk audit`: who did what, and the proof that nobody has changed the answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.failure import Exit, Failure, safe
from knhk_sidecar.cli.moments import time_of
from knhk_sidecar.cli.pages import gathered
from knhk_sidecar.cli.places import arriving, store_in
from knhk_sidecar.cli.render import grid, moment, short, show, structured
from knhk_sidecar.cli.session import FILE, OUTPUTS, Session, connected, read_file
from knhk_sidecar.client import Client
from knhk_workflow import (
    Checkpoint,
    InvalidInput,
    NotFound,
    StoreLocked,
    WorkflowError,
    check_store_audit,
    checkpoint_signed,
    checkpoints_consistent,
    prove_audit,
    prove_receipt,
    read_checkpoints,
    read_public_key,
)

EXPORT_SECONDS: Final = 3_600.0  # a million entries take about two minutes
RECEIPT: Final = b'{"format":"knhk-receipt"'
_MEND: Final = "keep what you have as evidence, and find out who could write to the daemon's volume"


@click.group()
def audit() -> None:
    """Who did what: list, export, verify, prove.

    \b
    Example:
      knhk audit list --outcome PERMISSION_DENIED
    """


@audit.command("list")
@click.option("--principal", default="", help="Only what this caller did.")
@click.option("--method", default="", help="Only this call: CreateCase, or its full name.")
@click.option("--resource", default="", metavar="PREFIX", help="Only what this begins: cases/order-17, workflows/.")
@click.option("--outcome", default="", metavar="CODE", help="Only this outcome: OK, PERMISSION_DENIED, NOT_FOUND ...")
@click.option("--after", metavar="TIME", help="Only at or after this time: 2030-01-31T12:00:00Z.")
@click.option("--before", metavar="TIME", help="Only before this time.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most to list.")
@connected
def list_entries(
    session: Session,
    principal: str,
    method: str,
    resource: str,
    outcome: str,
    after: str | None,
    before: str | None,
    limit: int,
) -> None:
    """List the audit, newest first.

    \b
    Example:
      knhk audit list --resource cases/order-17
    """
    request = pb.ListAuditRequest(
        principal=principal,
        method=method,
        resource_prefix=resource,
        outcome=outcome.upper(),
    )
    if after is not None:
        request.after.CopyFrom(time_of("--after", after))
    if before is not None:
        request.before.CopyFrom(time_of("--before", before))
    with session.client() as client:

        def page(size: int, token: str) -> pb.ListAuditResponse:
            request.page_size, request.page_token = size, token
            return client.admin.ListAudit(request, timeout=session.timeout)

        whole = gathered(limit, page, lambda found: found.entries)
    show(whole, session.output, lambda: _table(whole))


@audit.command("export")
@click.option("--out", "file", type=FILE, required=True, help="Where to write it.")
@click.option("--full", is_flag=True, help="With all commit records: who wrote what follows from the log alone.")
@connected
def export(session: Session, file: Path, full: bool) -> None:
    """Write the whole audit, of all tenants, as JSON lines that `knhk audit verify` proves offline.

    \b
    Example:
      knhk audit export --out audit.jsonl
    """
    with session.client() as client, arriving(file) as out:
        for piece in client.admin.ExportAudit(pb.ExportAuditRequest(full=full), timeout=EXPORT_SECONDS):
            out.write(piece.chunk)
    sys.stderr.write(f"the audit was written to {file}\n")


@audit.command("checkpoint")
@click.option("--out", "file", type=FILE, help="Where to write it; otherwise standard output.")
@connected
def checkpoint(session: Session, file: Path | None) -> None:
    """Fetch a signed checkpoint of every log, to be kept elsewhere.

    \b
    Example:
      knhk audit checkpoint --out monday.checkpoint
    """
    with session.client() as client:
        answer = client.admin.GetCheckpoint(pb.GetCheckpointRequest(), timeout=session.timeout)
    text = "\n".join(each.note for each in answer.checkpoints)
    if session.output != "table":
        show(answer, session.output, Text)
    elif file is None:
        sys.stdout.write(text)
    if file is not None:
        _written(file, text.encode())


@audit.command("receipt")
@click.argument("case_id")
@click.option("--sequence", type=click.IntRange(min=0), default=0, help="An event of the step; otherwise the latest.")
@click.option("--out", "file", type=FILE, required=True, help="Where to write it.")
@connected
def receipt(session: Session, case_id: str, sequence: int, file: Path) -> None:
    """Fetch the receipt of one durable step of a case; `knhk audit verify` proves it offline.

    \b
    Example:
      knhk audit receipt order-17 --out order-17.receipt
    """
    with session.client() as client:
        request = pb.GetReceiptRequest(case_id=case_id, sequence=sequence)
        answer = client.admin.GetReceipt(request, timeout=session.timeout).receipt
    _written(file, answer.proof_json)
    sys.stderr.write(
        f"event {answer.sequence} of case {safe(case_id)} is at position {answer.position}; receipt in {file}\n"
    )


@audit.command("verify")
@click.argument("file", type=FILE, required=False)
@click.option("--key", "public", type=FILE, help="The daemon's public key, SIGNING_KEY.pub: it must have signed.")
@click.option("--checkpoint", "known_file", type=FILE, help="A checkpoint that was kept elsewhere.")
@click.option(
    "--dir", "place", type=click.Path(file_okay=False, path_type=Path), help="A store that no daemon has open."
)
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True)
def verify(file: Path | None, public: Path | None, known_file: Path | None, place: Path | None, output: str) -> None:
    """Prove an exported audit or a receipt, or examine a store: offline.

    Exit code 1 names the first entry that is wrong. With --checkpoint a missing end and an older state are found too.

    \b
    Example:
      knhk audit verify audit.jsonl --key SIGNING_KEY.pub --checkpoint monday.checkpoint
      knhk audit verify --dir ./workflow_db --checkpoint monday.checkpoint
    """
    key = _key(public)
    known = _known(known_file, key)
    if place is not None and file is None:
        _verify_store(output, place, known)
    elif file is not None and place is None:
        _verify_file(output, file, key, known)
    else:
        raise Failure(Exit.USAGE, "give either FILE or --dir", "a running daemon: `knhk audit check CHECKPOINT`")


@audit.command("check")
@click.argument("known_file", metavar="CHECKPOINT", type=FILE)
@click.option("--signed-by", "public", type=FILE, help="The daemon's public key, SIGNING_KEY.pub.")
@connected
def check(session: Session, known_file: Path, public: Path | None) -> None:
    """Let the running daemon prove that its log continues a checkpoint that was kept elsewhere.

    \b
    Example:
      knhk audit check monday.checkpoint --signed-by SIGNING_KEY.pub
    """
    key = _key(public)
    _verify_daemon(session, _known(known_file, key), key)


def _verify_file(output: str, file: Path, key: bytes | None, known: Sequence[Checkpoint]) -> None:
    with _opened(file) as lines:
        first = lines.peek()
        if first.startswith(RECEIPT):
            if known:
                raise Failure(
                    Exit.USAGE,
                    f"{file}: a receipt alone cannot show that the log continues another checkpoint",
                    "leave out --checkpoint; hold the log against it with `knhk audit check` or an export",
                )
            _verify_receipt(output, file, b"".join(lines), key)
            return
        try:
            proof = prove_audit(lines, key, known)
        except InvalidInput as error:
            raise Failure(Exit.USAGE, f"{file}: {error.message}", "make one with `knhk audit export`") from error
    if output != "table":
        sizes = {str(shard): size for shard, size in proof.sizes.items()}
        structured({**msgspec.structs.asdict(proof), "sizes": sizes, "proven": not proof.problem}, output)
    if proof.problem:
        entry = f", entry {proof.entry}" if proof.entry else ""
        raise Failure(Exit.FAILED, f"{file}: line {proof.line}{entry}: {proof.problem}", _MEND)
    if output == "table":
        sizes_told = ", ".join(f"log {shard} has {size} records" for shard, size in sorted(proof.sizes.items()))
        doubt = "" if key is not None else ", which --key would prove"
        behind = f"; {len(known)} checkpoints that were kept elsewhere fit" if known else ""
        sys.stdout.write(
            f"{file}: {proof.entries} entries are proven; {sizes_told}{behind}\n"
            f"signed by key {proof.signed_by}{doubt}\n"
        )


def _verify_receipt(output: str, file: Path, document: bytes, key: bytes | None) -> None:
    try:
        verdict = prove_receipt(document, key)
    except InvalidInput as error:
        raise Failure(Exit.USAGE, f"{file}: {error.message}", "make one with `knhk audit receipt`") from error
    if output != "table":
        structured({**msgspec.structs.asdict(verdict), "proven": not verdict.problem}, output)
    if verdict.problem:
        raise Failure(Exit.FAILED, f"{file}: {verdict.problem}", _MEND)
    if output == "table":
        about = (
            f"event {verdict.sequence} of case {safe(verdict.case_id)}, {safe(verdict.method)} by "
            f"{safe(verdict.principal)}, "
            if verdict.case_id
            else f"entry {safe(verdict.audit_id)}, {safe(verdict.method)} by {safe(verdict.principal)}, "
            if verdict.audit_id
            else ""
        )
        sys.stdout.write(
            f"{file}: {about}is proven to be at position {verdict.position} of log {verdict.shard}\n"
            + ("its case has sensitive data, so that who made it is what the daemon says\n" if verdict.withheld else "")
            + f"signed by key {verdict.signed_by}{'' if key is not None else ', which --key would prove'}\n"
        )


def _verify_store(output: str, place: Path, known: Sequence[Checkpoint]) -> None:
    place = store_in(place)
    try:
        problems = asyncio.run(check_store_audit(str(place), known))
    except StoreLocked as error:
        raise Failure(
            Exit.UNAVAILABLE,
            error.message,
            "stop the daemon first, or let it prove that itself: `knhk audit check CHECKPOINT`",
        ) from error
    except NotFound as error:
        raise Failure(Exit.NOT_FOUND, error.message, "check the path") from error
    except WorkflowError as error:
        raise Failure(Exit.FAILED, f"{place}: {error.message}", _MEND) from error
    if output != "table":
        structured({"path": str(place), "problems": list(problems), "proven": not problems}, output)
    if problems:
        raise Failure(Exit.FAILED, f"{place}: {len(problems)} things are wrong", _MEND, problems[:20])
    if output == "table":
        sys.stdout.write(f"{place}: nothing is wrong; {len(known)} checkpoints fit\n")


def _verify_daemon(session: Session, known: Sequence[Checkpoint], key: bytes | None) -> None:
    """Ask for a proof of consistency from each checkpoint on, and check it here."""
    with session.client() as client:
        present = _present(client, session.timeout, key)
        for each in known:
            now = present.get(each.shard)
            if now is None or now.store != each.store:
                raise Failure(Exit.FAILED, f"the daemon has another store, not {each.store}", _MEND)
            if now.size < each.size:
                raise Failure(
                    Exit.FAILED,
                    f"log {each.shard} has {now.size} records, the checkpoint {each.size}: the end is missing, or an "
                    "older state was brought back",
                    _MEND,
                )
            request = pb.GetAuditProofRequest(shard=each.shard, first_size=each.size, second_size=now.size)
            answer = client.admin.GetAuditProof(request, timeout=session.timeout)
            path = [bytes.fromhex(hashed) for hashed in answer.hashes]
            if not checkpoints_consistent(each.size, now.size, each.root, now.root, path):
                raise Failure(
                    Exit.FAILED, f"log {each.shard} does not continue the checkpoint of {each.size} records", _MEND
                )
    if session.output != "table":
        structured({"proven": True, "sizes": {str(each.shard): each.size for each in present.values()}}, session.output)
    else:
        told = ", ".join(f"log {each.shard} from {each.size} to {present[each.shard].size} records" for each in known)
        sys.stdout.write(f"the daemon continues what was kept: {told}\n")


def _present(client: Client, timeout: float, key: bytes | None) -> dict[int, Checkpoint]:
    """The daemon's checkpoints of now, their signatures checked."""
    answer = client.admin.GetCheckpoint(pb.GetCheckpointRequest(), timeout=timeout)
    public = key if key is not None else read_public_key(answer.public_key_pem.encode())
    found: dict[int, Checkpoint] = {}
    for told in answer.checkpoints:
        (each,) = read_checkpoints(told.note)
        if not checkpoint_signed(each, public):
            raise Failure(Exit.FAILED, "the daemon's checkpoints are signed with another key", _MEND)
        found[each.shard] = each
    return found


def _key(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return read_public_key(read_file(file))
    except InvalidInput as error:
        raise Failure(Exit.USAGE, f"{file}: {error.message}", "use the SIGNING_KEY.pub beside the store") from error


def _known(file: Path | None, key: bytes | None) -> Sequence[Checkpoint]:
    if file is None:
        return ()
    try:
        known = read_checkpoints(read_file(file).decode("utf-8", "replace"))
    except InvalidInput as error:
        raise Failure(Exit.USAGE, f"{file}: {error.message}", "use one that the daemon pushed") from error
    if key is not None and not all(checkpoint_signed(each, key) for each in known):
        raise Failure(Exit.FAILED, f"{file}: it is not signed with this key", "use the key of whoever pushed it")
    return known


class _Lines:
    """The lines of a file, with a look at the first."""

    def __init__(self, file: Path) -> None:
        self._file = sys.stdin.buffer if str(file) == "-" else file.open("rb")
        self._first = self._file.readline()

    def peek(self) -> bytes:
        return self._first

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        yield from self._file

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _opened(file: Path) -> _Lines:
    try:
        return _Lines(file)
    except OSError as error:
        raise Failure(Exit.USAGE, f"{file}: {error.strerror}", "check the path and its permissions") from error


def _written(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise Failure(Exit.FAILED, f"{file}: {error.strerror}", "choose another --out") from error


def _table(whole: pb.ListAuditResponse) -> RenderableType:
    if not whole.entries:
        return "There is no such entry."
    table = grid("TIME", "WHO", "DID", "TO", "OUTCOME", "WHY", ">TIMES", "ID")
    for entry in whole.entries:
        good = entry.outcome == "OK"
        table.add_row(
            moment(entry.time),
            short(entry.principal),
            entry.method.rpartition("/")[2],
            entry.resource,
            Text(entry.outcome, style="green" if good else "bold red"),
            entry.reason,
            str(entry.count) if entry.count > 1 else "",
            entry.audit_id,
        )
    return table
