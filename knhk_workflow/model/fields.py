"""Reading the fields of a document: each wish yields a typed value, or a problem with its path and a usable default.

Nothing here raises on bad input; everything is noted in `Problems`, so that an author sees all mistakes at once.
"""

from __future__ import annotations

import datetime as dt
import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Final, TypeVar

import msgspec

from knhk_workflow.errors import Problem
from knhk_workflow.model.expression import ExpressionInvalid, compile_expression
from knhk_workflow.model.spec import Assignment

ID_BYTES_MAX: Final = 256  # an id is part of store keys
TEXT_MAX: Final = 4_096  # characters of a name or a description
PROBLEMS_MAX: Final = 500  # beyond these nobody reads; the last one says how many more there are
DURATION_MAX: Final = 100 * 366 * 86_400.0  # seconds; a century: longer ones are slips of the unit
COUNT_MAX: Final = 10_000  # instances, threads, tokens of a merge: the engine's own limit per activation

_SUGGESTIONS_MAX: Final = 50  # near names that are looked up; each costs up to a few ms in a large net
_SUGGESTION_CHARS: Final = 64
_SHOWN: Final = 60
_EXTENSION: Final = "x-"  # keys of other tools; ignored, kept with the document
_MEANT: Final[Mapping[str, str]] = {
    "role": "required_roles",
    "roles": "required_roles",
    "assignee": "required_roles",
    "condition": "when",
    "guard": "when",
    "source": "from",
    "target": "to",
    "inputs": "in",
    "outputs": "out",
    "subnet": "net",
    "sub_net": "net",
    "edges": "flows",
    "transitions": "flows",
    "places": "conditions",
    "steps": "tasks",
}

Option = TypeVar("Option", bound=str)


class Problems:
    """What is wrong with one document, in the order of reading."""

    def __init__(self) -> None:
        self._found: list[Problem] = []
        self._more = 0
        self._suggestions = _SUGGESTIONS_MAX

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, path: str, code: str, message: str, hint: str = "") -> None:
        if len(self._found) < PROBLEMS_MAX:
            self._found.append(Problem(path, code, message, hint=hint))
        else:
            self._more += 1

    def all(self) -> tuple[Problem, ...]:
        if self._more:
            return (*self._found, Problem("", "more", f"{self._more:,} more problems are not listed"))
        return tuple(self._found)

    def nearest(self, name: str, known: Collection[str]) -> str:
        """A hint that names what may have been meant, or nothing."""
        meant = _MEANT.get(name.lower())
        if meant in known:
            return f"did you mean {meant!r}?"
        if self._suggestions <= 0:
            return ""
        self._suggestions -= 1
        close = difflib.get_close_matches(name[:_SUGGESTION_CHARS], list(known), n=1)
        if not close and name.lower() in known:
            close = [name.lower()]
        return f"did you mean {close[0]!r}?" if close else ""


class Fields:
    """The keys of one object at `path`. Unknown keys are reported when it is made; null is the same as absent."""

    def __init__(self, problems: Problems, path: str, source: Mapping[str, object], known: Collection[str]) -> None:
        self.problems = problems
        self.path = path
        self._source = source
        for key in source:
            if key not in known and not key.startswith(_EXTENSION):
                hint = problems.nearest(key, known) or f"known here: {', '.join(sorted(known))}"
                problems.add(self.at(key), "unknown_key", f"unknown key {key[:_SHOWN]!r}", hint)

    def at(self, key: str) -> str:
        """The path of `key`."""
        return joined(self.path, key)

    def raw(self, key: str) -> object:
        return self._source.get(key)

    def wrong(self, key: str, expected: str, hint: str = "", code: str = "type") -> None:
        """Notes that `key` must be `expected`."""
        self.problems.add(self.at(key), code, f"must be {expected}, this is {shown(self.raw(key))}", hint)

    def text(self, key: str, limit: int = TEXT_MAX) -> str:
        value = self.raw(key)
        if value is None:
            return ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.wrong(key, "a text")
            return ""
        if len(value) > limit:
            self.problems.add(self.at(key), "too_long", f"has {len(value):,} characters, the limit is {limit:,}")
            return ""
        if not encodable(value):
            self.problems.add(self.at(key), "text", "holds half of a surrogate pair")
            return ""
        return value

    def name(self, key: str) -> str | None:
        """An id; None when absent or wrong."""
        value = self.raw(key)
        return None if value is None else identifier(self.problems, self.at(key), value)

    def names(self, key: str) -> tuple[str, ...]:
        """A list of ids; one id stands for a list of one."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            only = identifier(self.problems, self.at(key), value)
            return () if only is None else (only,)
        found: list[str] = []
        for index, each in enumerate(value):
            at = f"{self.at(key)}[{index}]"
            one = identifier(self.problems, at, each)
            if one is not None and one in found:
                self.problems.add(at, "duplicate", f"{one!r} is listed twice")
            elif one is not None:
                found.append(one)
        return tuple(found)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
            return default
        return value

    def choice(self, key: str, options: tuple[Option, ...], default: Option) -> Option:
        value = self.raw(key)
        if value is None:
            return default
        for option in options:
            if value == option:
                return option
        hint = self.problems.nearest(value, options) if isinstance(value, str) else ""
        self.wrong(key, f"one of {', '.join(options)}", hint, "unknown_value")
        return default

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.wrong(key, f"a whole number from {low:,} to {high:,}", code="number")
            return default
        return value

    def decimal(self, key: str, default: float, low: float, high: float) -> float:
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.wrong(key, f"a number from {low:g} to {high:g}", code="number")
            return default
        return float(value)

    def count(self, key: str, low: int, high: int = COUNT_MAX) -> int | str | None:
        """A number, or an expression for one."""
        value = self.raw(key)
        if isinstance(value, str):
            return self.expression(key, ("INT", "DYN"), "a whole number")
        if value is None:
            return None
        return self.integer(key, low, low, high)

    def condition(self, key: str) -> str | None:
        """An expression that is true or false."""
        value = self.raw(key)
        if isinstance(value, bool):
            return "true" if value else "false"
        return self.expression(key, ("BOOL", "DYN"), "true or false")

    def expression(self, key: str, kinds: tuple[str, ...] = (), expected: str = "") -> str | None:
        """CEL source that compiles and whose type, where it is known, is one of `kinds`."""
        value = self.raw(key)
        return None if value is None else expression(self.problems, self.at(key), value, kinds, expected)

    def assignments(self, key: str) -> tuple[Assignment, ...] | None:
        """Data keys with expressions, sorted by key: all are evaluated on the same data, so order means nothing."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.wrong(key, "a map of data keys to expressions", "for example {total: data.net + data.tax}")
            return None
        found: list[Assignment] = []
        for target in sorted(value):
            at = joined(self.at(key), target)
            source = value[target]
            if not target or len(target.encode(errors="replace")) > ID_BYTES_MAX or not encodable(target):
                self.problems.add(at, "key", f"a data key has 1 to {ID_BYTES_MAX} bytes")
            elif source is None or isinstance(source, bool | int | float):
                found.append(Assignment(target, msgspec.json.encode(source).decode()))
            else:
                text = expression(self.problems, at, source)
                if text is not None:
                    found.append(Assignment(target, text))
        return tuple(found)

    def duration(self, key: str) -> float | None:
        """Seconds, more than none."""
        value = self.raw(key)
        if value is None:
            return None
        seconds = duration(value)
        if seconds is None:
            self.wrong(key, "a duration", "for example 90 (seconds), 5m, 1h30m, 2d or PT5M", "duration")
        return seconds


def joined(path: str, key: str) -> str:
    """The path of `key` below `path`, fit to be printed."""
    step = key[:_SHOWN]
    if not step.isprintable():
        step = step.encode("unicode_escape", "replace").decode()
    return f"{path}.{step}" if path else step


def shown(value: object) -> str:
    """A wrong value for a message: short, and its kind where the value says nothing."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)[:_SHOWN]
    return "a list" if isinstance(value, list) else "a map"


def identifier(problems: Problems, path: str, value: object) -> str | None:
    """A free-form id: 1 to 256 bytes, no control characters, no space at its ends. Numbers stand for their digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problems.add(path, "type", f"must be a text, this is {shown(value)}")
    elif not value.strip():
        problems.add(path, "id", "must not be empty")
    elif not encodable(value):
        problems.add(path, "id", "holds half of a surrogate pair")
    elif len(value.encode()) > ID_BYTES_MAX:
        problems.add(path, "id", f"has {len(value.encode())} bytes, the limit is {ID_BYTES_MAX}")
    elif any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        problems.add(path, "id", f"{shown(value)} holds a control character")
    elif value != value.strip():
        problems.add(path, "id", f"{shown(value)} begins or ends with a space", f"write {value.strip()!r}")
    else:
        return value
    return None


def expression(
    problems: Problems, path: str, value: object, kinds: tuple[str, ...] = (), expected: str = ""
) -> str | None:
    if not isinstance(value, str):
        problems.add(path, "type", f"must be an expression, this is {shown(value)}", "write CEL, as data.amount > 100")
        return None
    try:
        compiled = compile_expression(value)
    except ExpressionInvalid as invalid:
        where = f"line {invalid.line}, column {invalid.column}: " if invalid.line else ""
        problems.add(path, "invalid_expression", where + invalid.problem, invalid.hint)
        return None
    if kinds and compiled.returns not in kinds:
        problems.add(path, "expression_type", f"must be {expected}, {shown(value)} is {compiled.returns.lower()}")
        return None
    return value


_SECONDS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SHORT: Final = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,6})?(?:ms|s|m|h|d|w))+")
_SHORT_PART: Final = re.compile(r"([0-9.]+)(ms|s|m|h|d|w)")
_NUMBER: Final = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)"
_ISO: Final = re.compile(rf"P(?:{_NUMBER}W)?(?:{_NUMBER}D)?(?:T(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?")
_DIGITS: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,6})?")


def duration(value: object) -> float | None:
    """Seconds of a number, `1h30m` or ISO 8601 without years and months (their length varies); None for others."""
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip()
        if _DIGITS.fullmatch(text):
            seconds = float(text)
        elif _SHORT.fullmatch(text):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in _SHORT_PART.findall(text))
        elif (iso := _ISO.fullmatch(text)) and text[-1] not in "PT":
            parts = zip(iso.groups(), ("w", "d", "h", "m", "s"), strict=True)
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts if number)
    if seconds is None or not math.isfinite(seconds) or not 0 < seconds <= DURATION_MAX:
        return None
    return seconds


def instant(text: str) -> bool:
    """Whether `text` is an RFC 3339 time with its offset."""
    return moment(text) is not None


def moment(text: str) -> int | None:
    """Nanoseconds since the epoch of an RFC 3339 time with its offset (to the microsecond); None for other texts."""
    try:
        found = dt.datetime.fromisoformat(text)
        if found.tzinfo is None:
            return None
        since = found - _EPOCH
    except (ValueError, OverflowError):
        return None
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: no half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)
