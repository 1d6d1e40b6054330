"""Which types of event met which faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from knhk_workflow.core.apply import APPLY
from tests.simulation.fates import FAULTS

EVENTS: Final = tuple(sorted(kind.__name__ for kind in APPLY))


def summary(met: Counter[tuple[str, str]], faults: frozenset[str]) -> str:
    """One line."""
    kinds = [kind for kind in FAULTS if kind in faults]
    found = sum(1 for kind in kinds for name in EVENTS if met[kind, name])
    return (
        f"coverage: {found} of {len(kinds) * len(EVENTS)} pairs of event type and fault ({len(EVENTS)} x {len(kinds)})"
    )


def table(met: Counter[tuple[str, str]], faults: frozenset[str]) -> Iterator[str]:
    """A row for each type of event, a column for each fault: how often they met."""
    kinds = [kind for kind in FAULTS if kind in faults]
    yield f"{'':22}" + "".join(f"{kind:>11}" for kind in kinds)
    for name in EVENTS:
        yield f"{name:22}" + "".join(f"{met[kind, name] or '-':>11}" for kind in kinds)
