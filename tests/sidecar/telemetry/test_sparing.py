"""Lines that others can cause: a burst of them, and a few a second after it."""

from __future__ import annotations

import io
import json

from knhk_sidecar.telemetry.log import Log
from knhk_sidecar.telemetry.sparing import Sparing


def test_a_burst_is_told_and_then_a_few_a_second() -> None:
    lines = io.StringIO()
    Log("info", "json", lines)
    seconds = [0.0]
    sparing = Sparing(10, 2, "of strangers", lambda: seconds[0])
    assert [sparing.admits() for _ in range(15)] == [True] * 10 + [False] * 5
    seconds[0] = 0.4
    assert not sparing.admits()
    assert lines.getvalue() == ""
    seconds[0] = 0.5
    assert [sparing.admits() for _ in range(2)] == [True, False]
    (told,) = map(json.loads, lines.getvalue().splitlines())
    assert (told["event"], told["count"], told["detail"]) == (
        "calls_refused",
        6,
        "of strangers, since the last such line",
    )
    seconds[0] = 1_000.0
    assert sum(sparing.admits() for _ in range(20)) == 10, "no more than a burst is saved up"
