"""Inside an engine: what tests look at, or damage, that no operation of it shows."""

from __future__ import annotations

import asyncio

from knhk_workflow import WorkflowEngine
from knhk_workflow.runtime.parts import Parts


def parts(engine: WorkflowEngine) -> Parts:
    """What an open engine consists of."""
    assert engine._parts is not None
    return engine._parts


def listening() -> list[str]:
    """What the event loop's exception handler is told from now on: what a daemon would log."""
    said: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(str(context["message"])))
    return said
