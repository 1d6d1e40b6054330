"""Inside an engine: what tests look at, or damage, that no operation of it shows."""

from __future__ import annotations

from knhk_workflow import WorkflowEngine
from knhk_workflow.runtime.parts import Parts


def parts(engine: WorkflowEngine) -> Parts:
    """What an open engine consists of."""
    assert engine._parts is not None
    return engine._parts
