"""All 43 patterns in the order of their numbers, found by number, name or alias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from knhk_workflow.errors import NotFound
from knhk_workflow.patterns.basic import BASIC
from knhk_workflow.patterns.branching import BRANCHING
from knhk_workflow.patterns.cancellation import CANCELLATION
from knhk_workflow.patterns.instances import INSTANCES
from knhk_workflow.patterns.iteration import ITERATION
from knhk_workflow.patterns.pattern import Pattern
from knhk_workflow.patterns.state import STATE
from knhk_workflow.patterns.termination import TERMINATION
from knhk_workflow.patterns.trigger import TRIGGER

PATTERNS: Final[tuple[Pattern, ...]] = tuple(
    sorted(
        (*BASIC, *BRANCHING, *INSTANCES, *STATE, *CANCELLATION, *ITERATION, *TERMINATION, *TRIGGER),
        key=lambda pattern: pattern.number,
    )
)
HINT: Final = f"patterns are 1 to {len(PATTERNS)}, for example 3, WCP-3 or Synchronization"


def find(pattern: int | str) -> Pattern:
    """The pattern with this number, `WCP-n`, name or alias; case, blanks and hyphens do not matter. Raises NotFound."""
    if isinstance(pattern, int):
        found = PATTERNS[pattern - 1] if 1 <= pattern <= len(PATTERNS) else None
    else:
        found = _BY_NAME.get(_folded(pattern))
    if found is None:
        raise NotFound("pattern", str(pattern)[:100], HINT)
    return found


def _folded(name: str) -> str:
    return "".join(name.lower().replace("-", " ").split())


def _names(pattern: Pattern) -> Iterator[str]:
    yield from (pattern.name, *pattern.aliases)
    yield from (str(pattern.number), f"WCP {pattern.number}", f"WCP {pattern.number:02}")


_BY_NAME: Final = {_folded(name): pattern for pattern in PATTERNS for name in _names(pattern)}
