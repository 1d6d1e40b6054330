"""Moments and lengths of time, as they are written on the command line."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from knhk_sidecar.cli.failure import Exit, Failure
from knhk_workflow import parse_duration


def time_of(option: str, text: str) -> Timestamp:
    """A time given on the command line. Raises `Failure`."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise Failure(Exit.USAGE, f"{option} {text!r} is no time with its offset", "for example 2030-01-31T12:00:00Z")
    stamp = Timestamp()
    stamp.FromDatetime(found.astimezone(UTC))
    return stamp


def length_of(option: str, text: str) -> Duration:
    """A length of time given on the command line. Raises `Failure`."""
    seconds = parse_duration(text)
    if seconds is None:
        raise Failure(Exit.USAGE, f"{option} {text!r} is no duration", "for example 14d, 1h30m or PT5M")
    length = Duration()
    length.FromNanoseconds(round(seconds * 1_000_000_000))
    return length
