"""`knhk backup`, `knhk restore`, `knhk verify`: keeping a store, and knowing that it is whole."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from knhk_sidecar.api import pb
from knhk_sidecar.cli.failure import Exit, Failure
from knhk_sidecar.cli.moments import time_of
from knhk_sidecar.cli.places import arriving, store_in
from knhk_sidecar.cli.render import console, structured
from knhk_sidecar.cli.session import FILE, OUTPUTS, Session, connected
from knhk_workflow import (
    Archive,
    Examination,
    InvalidInput,
    Moment,
    NotFound,
    StoreError,
    StoreLocked,
    WorkflowError,
    check_backup,
    restore_store,
    verify_store,
)

T = TypeVar("T")
Bar = Callable[[int, int], None]

SHOWN: Final = 20  # findings of a table; -o json has up to a thousand


@click.command()
@click.argument("file", type=FILE)
@click.option("--after", type=FILE, help="An earlier backup: only what happened since goes into this one.")
@connected
def backup(session: Session, file: Path, after: Path | None) -> None:
    """Take a backup of a running daemon's store; its calls go on meanwhile.

    The file is read again and proven before it gets its name.

    \b
    Example:
      knhk backup monday.knhk
      knhk backup tuesday.knhk --after monday.knhk
    """
    token = _checked(after).token if after is not None else ""
    digest = hashlib.blake2b(digest_size=32)
    told = ""
    with session.client() as client, _bar("Backup") as show, arriving(file) as out:
        for piece in client.admin.Backup(pb.BackupRequest(after_token=token)):
            out.write(piece.chunk)
            digest.update(piece.chunk)
            show(piece.record_count, piece.record_estimate)
            told = piece.digest or told
        out.flush()
        if told != digest.hexdigest():
            raise Failure(Exit.FAILED, f"{file}: what arrived is not what was sent", "take the backup again")
        archive = _checked(Path(out.name))
    _answer(session.output, f"{_about(archive)} written to {file}", {"file": str(file), **_archive(archive)})


@click.command()
@click.argument("backups", nargs=-1, required=True, type=FILE)
@click.option("--into", required=True, type=click.Path(path_type=Path), help="The new store: absent or empty.")
@click.option("--until-position", type=click.IntRange(min=1), default=None, help="Leave out all behind it.")
@click.option("--until-time", metavar="TIME", default=None, help="Leave out what happened later: 2026-03-01T12:00:00Z.")
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True)
def restore(
    backups: tuple[Path, ...], into: Path, until_position: int | None, until_time: str | None, output: str
) -> None:
    """Make a store from a whole backup and the incremental ones that follow it, in order.

    What comes out is examined before it gets its name. Start the daemon on it with KGC_SIDECAR_WORKFLOW_DB_PATH.

    \b
    Example:
      knhk restore monday.knhk tuesday.knhk --into ./restored
      knhk restore monday.knhk --into ./earlier --until-time 2026-03-01T12:00:00Z
    """
    if until_position is not None and until_time is not None:
        raise Failure(Exit.USAGE, "--until-position and --until-time exclude each other", "give one of them")
    until = Moment(
        until_position or 0, time_of("--until-time", until_time).ToNanoseconds() if until_time is not None else 0
    )
    with _bar("Restore") as show:
        made = _told(lambda: restore_store([str(each) for each in backups], str(into), until=until, progress=show))
    found = made.examination
    _answer(
        output,
        f"{found.cases} cases with {found.events} events restored into {into}, up to log position {made.position}",
        {"path": str(into), "position": made.position, **_examination(found)},
    )


@click.command()
@click.argument("place", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True)
def verify(place: Path, output: str) -> None:
    """Examine a store that no daemon has open, or a backup: every record, every hash.

    Exit code 1 when anything is wrong.

    \b
    Example:
      knhk verify ./workflow_db
      knhk verify monday.knhk
    """
    if place.is_file():
        archive = _checked(place)
        _answer(output, f"{place}: {_about(archive)}, nothing is wrong", {"file": str(place), **_archive(archive)})
        return
    place = store_in(place)
    with _bar("Verify") as show:
        found = _told(lambda: verify_store(str(place), show))
    lines = [
        f"{place}: {found.cases} cases, {found.events} events in {found.records} records, {found.values} values in all"
        + (f", {found.purged} cases purged" if found.purged else ""),
        *(f"log of shard {end.shard} ends at {end.position} {end.hashed.hex()}" for end in found.ends),
    ]
    _answer(output, "\n".join(lines), {"path": str(place), **_examination(found)})
    if not found.intact:
        shown = [f"{one.code}: {one.message}" for one in found.findings[:SHOWN]]
        if found.found > len(shown):
            shown.append(f"and {found.found - len(shown)} more")
        raise Failure(
            Exit.FAILED,
            f"{found.found} {'thing is' if found.found == 1 else 'things are'} wrong",
            "keep a copy of the directory, then `knhk restore` the last good backup",
            shown,
        )
    if output == "table":
        console().print("nothing is wrong")


def _checked(file: Path) -> Archive:
    try:
        return check_backup(str(file))
    except WorkflowError as error:
        raise _failure(error) from error
    except OSError as error:
        raise Failure(Exit.FAILED, f"{file}: {error.strerror}", "check the path and its permissions") from error


def _told(work: Callable[[], Coroutine[object, object, T]]) -> T:
    try:
        return asyncio.run(work())
    except WorkflowError as error:
        raise _failure(error) from error
    except OSError as error:
        raise Failure(Exit.FAILED, str(error), "check the path, its permissions and the space on the volume") from error


def _failure(error: WorkflowError) -> Failure:
    if isinstance(error, StoreLocked):
        return Failure(Exit.UNAVAILABLE, error.message, "stop the daemon first, or verify a backup of it")
    if isinstance(error, NotFound):
        return Failure(Exit.NOT_FOUND, error.message, "check the path")
    if isinstance(error, InvalidInput):
        return Failure(Exit.USAGE, error.message, error.problems[0].hint if error.problems else "")
    mend = "use another backup" if isinstance(error, StoreError) else ""
    return Failure(Exit.FAILED, f"{error.message} ({error.reason})", mend)


@contextmanager
def _bar(title: str) -> Iterator[Bar]:
    """A progress bar on standard error, when somebody looks."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _about(archive: Archive) -> str:
    kind = "incremental backup" if archive.begin.after else "whole backup"
    return f"{kind} with {archive.end.records} records, {archive.size:,} bytes,"


def _archive(archive: Archive) -> dict[str, object]:
    return {
        "whole": not archive.begin.after,
        "records": archive.end.records,
        "pairs": archive.end.pairs,
        "bytes": archive.size,
        "token": archive.token,
        "until": {str(place.shard): place.position for place in archive.begin.until},
    }


def _examination(found: Examination) -> dict[str, object]:
    return {
        "intact": found.intact,
        "cases": found.cases,
        "purged": found.purged,
        "records": found.records,
        "events": found.events,
        "batches": found.batches,
        "values": found.values,
        "logs": [{"shard": end.shard, "position": end.position, "hash": end.hashed.hex()} for end in found.ends],
        "found": found.found,
        "findings": [
            {"code": one.code, "message": one.message, "tenant": one.tenant, "case_id": one.case_id}
            for one in found.findings
        ],
    }


def _answer(output: str, text: str, value: dict[str, object]) -> None:
    if output == "table":
        sys.stdout.write(text + "\n")
    else:
        structured(value, output)
