"""What is answered where the engine is switched off."""

from __future__ import annotations

from typing import Final

from knhk_workflow import Unsupported, WorkflowEngine

ENGINE: Final = "workflow engine"  # as what is missing is named


class EngineCalls:
    """Calls of a service that is there without the engine too."""

    def __init__(self, engine: WorkflowEngine | None) -> None:
        self._engine = engine

    def _running(self) -> WorkflowEngine:
        """The engine. Raises Unsupported."""
        if self._engine is None:
            raise engine_off()
        return self._engine


def engine_off() -> Unsupported:
    """The refusal of a call that needs the engine."""
    return Unsupported(ENGINE, "set KGC_SIDECAR_WORKFLOW_ENABLED=true and restart the sidecar")
