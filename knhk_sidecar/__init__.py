"""KNHK sidecar: the daemon around the workflow engine, and its Python surface.

    service = KgcSidecarService(SidecarConfig.from_env())
    result = await service.execute_workflow_pattern(1, PatternExecutionContext(case_id="case-1"))

Importing this package is cheap: a name is loaded when it is used first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from knhk_sidecar.app import Sidecar as Sidecar
    from knhk_sidecar.config import ConfigError as ConfigError
    from knhk_sidecar.config import SidecarConfig as SidecarConfig
    from knhk_sidecar.service import KgcSidecarService as KgcSidecarService
    from knhk_workflow import PatternExecutionContext as PatternExecutionContext

__all__ = ["ConfigError", "KgcSidecarService", "PatternExecutionContext", "Sidecar", "SidecarConfig"]

_HOMES = {
    "ConfigError": "knhk_sidecar.config",
    "KgcSidecarService": "knhk_sidecar.service",
    "PatternExecutionContext": "knhk_workflow",
    "Sidecar": "knhk_sidecar.app",
    "SidecarConfig": "knhk_sidecar.config",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
