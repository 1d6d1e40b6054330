"""Answers as people and programs like to read them: tables and time lines, JSON, YAML."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import Final, TypeVar

import yaml
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.api.rest.canonical import dump
from knhk_sidecar.cli.failure import safe

M = TypeVar("M", bound=Message)

STATE_STYLES: Final[Mapping[str, str]] = {
    "created": "cyan",
    "running": "bold blue",
    "completed": "green",
    "cancelled": "yellow",
    "failed": "bold red",
    "suspended": "magenta",
    "offered": "cyan",
    "allocated": "blue",
    "started": "bold blue",
    "skipped": "yellow",
    "withdrawn": "dim",
    "terminated": "dim",
    "force_completed": "green",
    "waiting": "yellow",
    "enabled": "cyan",
    "incident": "bold red",
    "idle": "dim",
    "unreachable": "dim",
}
_EVENT_STYLES: Final[Sequence[tuple[str, str]]] = (  # the first part that an event type contains decides
    ("incident", "bold red"),
    ("failed", "red"),
    ("cancelled", "yellow"),
    ("withdrawn", "yellow"),
    ("terminated", "yellow"),
    ("completed", "green"),
    ("case_created", "cyan"),
    ("state_changed", "bold blue"),
    ("enabled", "cyan"),
    ("offered", "cyan"),
)
REFRESH_SECONDS: Final = 1.0  # how often --watch asks again
PIPE_WIDTH: Final = 180  # columns when nobody looks: nothing of a table should be cut in a log
MASK: Final = "***"  # of sensitive data, as the engine's own
_DATA: Final = frozenset({"data_json", "output_json"})  # fields of messages that hold data
SUMMARY_MAX: Final = 100  # characters of an event's data in a time line; -o json has all of it


@cache
def console() -> Console:
    """Standard output; obeys NO_COLOR, and is plain when it is no terminal."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=PIPE_WIDTH, color_system=None)


def show(message: Message, output: str, table: Callable[[], RenderableType], member: str = "") -> None:
    """Prints an answer: the message as JSON or YAML (only `member` of it, when named), or the table made of it.

    What the workflow calls sensitive is masked, unless the message says nothing of it any more (`unveil`)."""
    veil(message)
    if output == "table":
        disarm(message)
        console().print(table())
    else:
        structured(plain(message, member), output)


def present(
    output: str, ask: Callable[[], M], table: Callable[[M], RenderableType], watch: bool, member: str = ""
) -> None:
    """Prints an answer once, or with `watch` again and again until interrupted; without a terminal only when it
    changed."""
    if not watch:
        answer = ask()
        show(answer, output, lambda: table(answer), member)
        return
    if output == "table" and console().is_terminal:
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                answer = ask()
                veil(answer)
                disarm(answer)
                live.update(table(answer), refresh=True)
                time.sleep(REFRESH_SECONDS)
    before: bytes | None = None
    while True:
        answer = ask()
        now = answer.SerializeToString(deterministic=True)
        if now != before:
            show(answer, output, partial(table, answer), member)
            before = now
        time.sleep(REFRESH_SECONDS)


def disarm(message: Message) -> None:
    """Makes the text in a message harmless for a terminal, in place; JSON is left to `text_of`."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, safe(value))
        elif field.type == field.TYPE_STRING:
            value[:] = [safe(each) for each in value]
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else (value,):
                disarm(each)


def veil(message: Message, names: frozenset[str] = frozenset()) -> None:
    """Masks the fields of data that are named beside it, or around it (`names`), as sensitive, in place."""
    names |= frozenset(getattr(message, "sensitive_fields", ()))
    for field, value in message.ListFields():
        if field.name in _DATA and names and value:
            setattr(message, field.name, json.dumps(_veiled(json.loads(value), names)).encode())
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else (value,):
                veil(each, names)


def unveil(message: Message) -> None:
    """Forgets which fields are sensitive: the person asked to see them."""
    message.ClearField("sensitive_fields")


def _veiled(value: object, names: frozenset[str]) -> object:
    if isinstance(value, dict):
        return {key: MASK if key in names else _veiled(each, names) for key, each in value.items()}
    return [_veiled(each, names) for each in value] if isinstance(value, list) else value


def text_of(json_text: bytes) -> str:
    """JSON from a message as text for people."""
    return safe(json_text.decode("utf-8", "replace"))


def plain(message: Message, member: str = "") -> object:
    """A message as plain values, with the names and shapes of the REST surface."""
    return json.loads(dump(message, member))


def structured(value: object, output: str) -> None:
    """Prints plain values as JSON or YAML."""
    if output == "yaml":
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=PIPE_WIDTH)
    else:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def grid(*columns: str) -> Table:
    """A table without boxes: a head line and rows."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table


def pairs(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values, one per line; empty values are left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value != "":
            table.add_row(name, value)
    return table


def stated(state: str) -> Text:
    """The name of a state in its colour."""
    return Text(state, style=STATE_STYLES.get(state, ""))


def case_state(state: pb.CaseState.ValueType) -> str:
    """`running` for CASE_STATE_RUNNING."""
    return pb.CaseState.Name(state).removeprefix("CASE_STATE_").lower()


def item_state(state: pb.WorkItemState.ValueType) -> str:
    """`offered` for WORK_ITEM_STATE_OFFERED."""
    return pb.WorkItemState.Name(state).removeprefix("WORK_ITEM_STATE_").lower()


def moment(stamp: Timestamp) -> str:
    """A time as local wall clock to the second; empty when there is none."""
    if not stamp.seconds:
        return ""
    return datetime.fromtimestamp(stamp.seconds, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock(stamp: Timestamp) -> str:
    """A time within a day, to the millisecond."""
    local = datetime.fromtimestamp(stamp.seconds, tz=UTC).astimezone()
    return f"{local:%H:%M:%S}.{stamp.nanos // 1_000_000:03d}"


def ago(stamp: Timestamp) -> str:
    """How long ago a time was: `12 s`, `3 min`, `5 h`, `2 d`; empty when there is none."""
    if not stamp.seconds:
        return ""
    seconds = max(0, int(datetime.now(tz=UTC).timestamp()) - stamp.seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


class Timeline:
    """Prints the events of one or more cases as they come, each with the time since the one before."""

    def __init__(self, *, with_case: bool = False) -> None:
        self._with_case = with_case
        self._before = 0
        self._principal = ""

    def print(self, event: pb.HistoryEvent) -> None:
        """One line for one event."""
        disarm(event)
        now = event.timestamp.seconds * 1_000_000_000 + event.timestamp.nanos
        gap = elapsed(now - self._before) if self._before else ""
        self._before = now
        style = next((each for part, each in _EVENT_STYLES if part in event.event_type), "")
        line = Text()
        line.append(f"{clock(event.timestamp)} {gap:>9}  ", "dim")
        if self._with_case:
            line.append(f"{event.case_id}  ", "bold")
        line.append(f"#{event.sequence:<4}", "dim")
        line.append(f"{event.event_type:<20} ", style)
        line.append(summary(event.event_type, event.data_json))
        if event.principal != self._principal:
            self._principal = event.principal
            line.append(f"  by {short(event.principal)}", "dim")
        console().print(line, soft_wrap=True)


def elapsed(nanos: int) -> str:
    """A time span with three digits that matter."""
    if nanos <= 0:
        return "+0"
    if nanos < 1_000_000:
        return f"+{nanos / 1_000:.0f} us"
    if nanos < 1_000_000_000:
        return f"+{nanos / 1_000_000:.0f} ms"
    if nanos < 120_000_000_000:
        return f"+{nanos / 1_000_000_000:.1f} s"
    return f"+{nanos / 60_000_000_000:.0f} min"


# What a person need not read, because it is the usual or the item's id says it too; -o json has all of it.
_USUAL: Final[Mapping[str, tuple[object, ...]]] = {"net": (1,), "instance": (0, 1), "attempt": (1,), "depth": (0,)}
_SILENT: Final = frozenset({"by", "activation", "inputs", "consumed", "parent", "started"})


def summary(event_type: str, data_json: bytes) -> str:
    """An event's data in one line: the task first, then where it goes, then the rest."""
    try:
        data = json.loads(data_json or b"{}")
    except ValueError:
        return text_of(data_json)[:SUMMARY_MAX]
    if not isinstance(data, dict):
        return text_of(data_json)[:SUMMARY_MAX]
    parts = []
    if event_type == "state_changed" and "before" in data:
        parts.append(f"{data.pop('before')} -> {data.pop('state', '')}")
    if task := data.pop("task", ""):
        parts.append(str(task))
    if produced := data.pop("produced", None):
        parts.append("-> " + ", ".join(str(place).rpartition("->")[2] for place in produced))
    for name, value in data.items():
        if name in _SILENT or value in _USUAL.get(name, ()) or value in (None, "", [], {}):
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        parts.append(text if name == "item_id" else f"{name}={text}")
    line = safe("  ".join(parts))
    return line if len(line) <= SUMMARY_MAX else line[: SUMMARY_MAX - 3] + "..."


def short(principal: str) -> str:
    """A SPIFFE id without what is the same for everybody."""
    return principal.removeprefix("spiffe://")
