"""Log lines: data in, one line out, nothing secret."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from knhk_sidecar.telemetry.log import MASK, Log

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----"


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\r\nb", "a\u2028b", "\x1b[2J", "\x9b31m", "a\x00b", "\udc80", "\x7f", "{}%s{x}", "ü"]
)
def test_a_value_never_makes_a_line(style: str, hostile: str) -> None:
    stream = io.StringIO()
    Log("info", style, stream)
    structlog.get_logger().info("call", case_id=hostile, other=[hostile])
    (line,) = stream.getvalue().splitlines()
    assert line.isascii()
    assert line.isprintable()


@pytest.mark.parametrize("style", ["json", "console"])
def test_secrets_are_masked_by_name_and_by_look(style: str) -> None:
    stream = io.StringIO()
    Log("info", style, stream)
    structlog.get_logger().info(
        "call",
        password="hunter2",
        authorization="Basic aHVudGVyMg==",
        aws_secret="hunter2",
        note=f"key {KEY} end",
        header="Bearer abc.def",
        url="https://user:hunter2@host/x",
        token_like="eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.",
    )
    text = stream.getvalue()
    for secret in ("hunter2", "aHVudGVyMg", "MHcCAQEE", "abc.def", "eyJhbGci"):
        assert secret not in text
    assert MASK in text


def test_the_level_changes_while_running() -> None:
    stream = io.StringIO()
    log = Log("info", "json", stream)
    logger = structlog.get_logger()
    logger.debug("unheard")
    assert log.set_level("debug") == "info"
    logger.debug("heard")
    assert log.debug_enabled
    log.set_level("error")
    logger.info("unheard")
    assert [line["event"] for line in lines(stream)] == ["heard"]
    with pytest.raises(ValueError, match="must be one of"):
        log.set_level("loud")


def test_exceptions_and_libraries_take_the_same_way() -> None:
    stream = io.StringIO()
    Log("info", "json", stream)
    try:
        raise RuntimeError("because of Bearer abc")
    except RuntimeError:
        structlog.get_logger().exception("broke")
    logging.getLogger("some.library").warning("a %s\nline", "second")
    broke, library = lines(stream)
    assert "RuntimeError" in str(broke["exception"])
    assert "Bearer abc" not in str(broke["exception"])
    assert (library["event"], library["logger"], library["level"]) == ("a second\nline", "some.library", "warning")


def test_long_values_are_cut() -> None:
    stream = io.StringIO()
    Log("info", "json", stream)
    structlog.get_logger().info("call", case_id="x" * 100_000)
    assert len(stream.getvalue()) < 5_000


def test_a_line_of_a_library_is_told_once_however_many_logs_there_were() -> None:
    first, second = io.StringIO(), io.StringIO()
    Log("info", "json", first)
    Log("info", "json", second).set_level("debug")
    logging.getLogger("some.library").warning("once")
    assert (first.getvalue(), len(second.getvalue().splitlines())) == ("", 1)
