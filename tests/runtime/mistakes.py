"""A core that makes mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from knhk_workflow.core import commands as c
from knhk_workflow.core import decide as core_decide
from knhk_workflow.core.step import Step


@contextmanager
def poison(
    command: type[c.Command], case_id: str, met: Callable[[], object] = lambda: None, times: int = 1_000
) -> Iterator[None]:
    """The core with a mistake in it that only one case meets, that often; `met` is called when it does."""
    right = core_decide.DECIDE[command]
    left = times

    def wrong(step: Step, asked: Any) -> None:
        nonlocal left
        if step.case.case_id == case_id and left:
            left -= 1
            met()
            raise KeyError("planted")
        right(step, asked)

    table: Any = core_decide.DECIDE
    table[command] = wrong
    try:
        yield
    finally:
        table[command] = right
