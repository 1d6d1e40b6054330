"""Medians with intervals that assume nothing about how the samples are spread."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from statistics import median

import msgspec

CONFIDENCE = 0.95


class Estimate(msgspec.Struct, frozen=True):
    """A median, and between what it lies with 95% confidence."""

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Of independent samples. The interval is between two order statistics; below 6 samples it is their whole range."""
    ordered = sorted(values)
    count = len(ordered)
    cut = 0
    below = 0.0
    # P(fewer than k of n samples lie below the median) for k = cut + 1, on both sides
    while (below := below + comb(count, cut) / 2**count) * 2 <= 1 - CONFIDENCE:
        cut += 1
    edge = max(cut - 1, 0)
    return Estimate(median(ordered), ordered[edge], ordered[-1 - edge])


def ratio(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Of second to first, pair by pair."""
    return estimate([second / first for first, second in pairs])


def quantile(values: Sequence[float], part: float) -> float:
    """The sample below which `part` of all lie; 0 without samples."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
