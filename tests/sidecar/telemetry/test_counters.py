"""What the numbers look like to who collects them."""

from __future__ import annotations

import math

from knhk_sidecar.telemetry.counters import Counters, Family


def test_numbers_keep_their_digits() -> None:
    counters = Counters()
    for name, value in {
        "stamp": 1_790_000_000.125,
        "many": 12_345_678,
        "half": 0.5,
        "no": math.nan,
        "on": True,
    }.items():
        counters.gauge(name, "A number.", lambda value=value: value)  # type: ignore[misc]  # bound now, not called
    counters.families(lambda: [Family("each", "Numbers.", "counter", [((("shard", "1"),), 12_345_678.0)])])
    lines = counters.prometheus().splitlines()
    for line in (
        "knhk_stamp 1790000000.125",
        "knhk_many 12345678",
        "knhk_half 0.5",
        "knhk_no nan",
        "knhk_on 1",
        'knhk_each{shard="1"} 12345678',
    ):
        assert line in lines
