"""Log lines on stderr: one JSON object each, or text for people; the level can be changed while running.

Whatever a caller sent is a value in such a line: line breaks, control and terminal characters are escaped in both
formats, long values are cut, and values whose name or look says that they are secret are masked. Lines of libraries
that use the standard logging module take the same way.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Final, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
VALUE_CHARACTERS_MAX: Final = 4_096  # a line stays below what collectors cut (16 KB)
STACK_CHARACTERS_MAX: Final = 12_000
MASK: Final = "********"

_SECRET_NAME = re.compile(
    r"(^|_)(password|passwd|secret|authorization|cookie|credentials?|private_key|api_?key|access_token|refresh_token|jwt)"
    r"($|_)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|(?i:\bbearer\s+)[A-Za-z0-9._~+/=-]+"
    r"|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|(?<=://)[^/@\s]+(?=@)",
    re.DOTALL,
)
_FIRST = ("timestamp", "level", "event")


class _Handler(logging.StreamHandler[TextIO]):
    """Lines of libraries. Of the process as the rest of the log is: there is one at a time."""


class Log:
    """The process's log. `debug_enabled` is what the hot path asks before it builds a line."""

    def __init__(self, level: str = "info", style: str = "json", stream: TextIO | None = None) -> None:
        """Configures structlog and the standard logging module. `level` and `style` as in the settings."""
        self._stream = sys.stderr if stream is None else stream
        self._render = _as_json if style == "json" else _as_text
        self.level = ""
        self.debug_enabled = False
        self.set_level(level)

    def set_level(self, level: str) -> str:
        """From now on; returns the level before. ValueError for an unknown one."""
        number = LEVELS.get(level)
        if number is None:
            raise ValueError(f"must be one of {', '.join(LEVELS)}, not {level!r}")
        before, self.level, self.debug_enabled = self.level, level, number <= logging.DEBUG
        processors = [
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _stamp,
            _stack,
            _clean,
        ]
        structlog.configure(
            processors=[*processors, self._render],
            wrapper_class=structlog.make_filtering_bound_logger(number),
            logger_factory=structlog.WriteLoggerFactory(self._stream),
            cache_logger_on_first_use=False,  # a cached logger would keep its level
        )
        handler = _Handler(self._stream)
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[structlog.stdlib.add_log_level, _logger_name, _stamp],
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _stack, _clean, self._render],
            )
        )
        root = logging.getLogger()
        for each in root.handlers[:]:
            if isinstance(each, _Handler):  # of another daemon in this process: a line is told once
                root.removeHandler(each)
        root.addHandler(handler)
        root.setLevel(max(number, logging.INFO))  # libraries tell more at debug than anybody wants
        logging.getLogger("uvicorn").setLevel(max(number, logging.WARNING))  # the daemon tells itself when it starts
        return before


def _stamp(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    line["timestamp"] = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return line


def _logger_name(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    record = line.get("_record")
    if isinstance(record, logging.LogRecord):
        line["logger"] = record.name
    return line


def _stack(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """Exceptions become one text value; in the log only, never in an answer."""
    line = structlog.processors.format_exc_info(logger, method, line)
    stack = line.get("exception")
    if isinstance(stack, str) and len(stack) > STACK_CHARACTERS_MAX:
        line["exception"] = "..." + stack[-STACK_CHARACTERS_MAX:]
    return line


def _clean(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Masks secrets, cuts long values; the order of keys is fixed at the front."""
    ordered: MutableMapping[str, object] = {key: line[key] for key in _FIRST if key in line}
    for key, value in line.items():
        if _SECRET_NAME.search(key):
            ordered[key] = MASK
        elif key == "exception":
            ordered[key] = _SECRET_VALUE.sub(MASK, str(value))
        else:
            ordered[key] = _clean_value(value)
    return cast(EventDict, ordered)


def _clean_value(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_clean_value(each) for each in value[:100]]
    text = value if isinstance(value, str) else str(value)
    if len(text) > VALUE_CHARACTERS_MAX:
        text = text[:VALUE_CHARACTERS_MAX] + "..."
    return _SECRET_VALUE.sub(MASK, text)


def _as_json(_logger: WrappedLogger, _method: str, line: EventDict) -> str:
    """ASCII only: control characters of every kind, line separators and lone surrogates are escapes."""
    return json.dumps(line, ensure_ascii=True, separators=(",", ":"), default=str)


def _as_text(_logger: WrappedLogger, _method: str, line: EventDict) -> str:
    """`12:00:00.000 info    call  code=OK method=...`; every value that is not a plain word is quoted and escaped."""
    clock = str(line.pop("timestamp", ""))[11:23]
    level, event = str(line.pop("level", "")), str(line.pop("event", ""))
    stack = line.pop("exception", None)
    pairs = " ".join(f"{_word(str(key))}={_word(value)}" for key, value in line.items())
    text = f"{clock} {level:7} {_word(event, spaces=True)}  {pairs}"
    if stack:
        text += "\n" + "\n".join(f"    {_printable(part)}" for part in str(stack).splitlines())
    return text


def _word(value: object, *, spaces: bool = False) -> str:
    text = str(value)
    plain = text.isprintable() and text.isascii() and '"' not in text and (spaces or (" " not in text and text != ""))
    return text if plain else ascii(text)


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)
