"""What is answered where the engine is switched off."""

from __future__ import annotations

from typing import Final

from knhk_workflow import Unsupported

ENGINE: Final = "workflow engine"  # as what is missing is named


def engine_off() -> Unsupported:
    """The refusal of a call that needs the engine."""
    return Unsupported(ENGINE, "set KGC_SIDECAR_WORKFLOW_ENABLED=true and restart the sidecar")
