"""The sidecar's service as a Python object, without listeners: what an application embeds."""

from __future__ import annotations

from typing import Self

from knhk_sidecar.config import SidecarConfig
from knhk_workflow import (
    EngineLimits,
    JournalLimits,
    PatternExecutionContext,
    PatternResult,
    RetentionPolicy,
    StateStore,
    Unsupported,
    VerifyBudget,
    WorkflowEngine,
)


def engine_of(config: SidecarConfig) -> WorkflowEngine | None:
    """The engine that the settings describe, not open yet; None when it is switched off."""
    if not config.workflow_enabled:
        return None
    journal = JournalLimits(batch_units=config.batch_size, linger_s=config.batch_timeout_ms / 1000)
    budget = VerifyBudget(config.verification_markings, config.verification_steps)
    limits = EngineLimits(journal=journal, verification=budget, retention=_retention(config))
    return WorkflowEngine(StateStore(config.store_path), limits=limits)


def _retention(config: SidecarConfig) -> RetentionPolicy:
    return RetentionPolicy(
        completed_s=_kept(config.retention_completed_hours),
        cancelled_s=_kept(config.retention_cancelled_hours),
        failed_s=_kept(config.retention_failed_hours),
        every_s=config.retention_interval_seconds,
    )


def _kept(hours: float) -> float | None:
    return hours * 3_600 if hours else None


class KgcSidecarService:
    """Pattern execution and the engine behind it. Use as `async with`, or `close` it, so that the store is released."""

    def __init__(self, config: SidecarConfig) -> None:
        """The engine is made from the settings; its store is opened at the first use."""
        self._config = config
        self._engine = engine_of(config)

    @classmethod
    def with_workflow_engine(cls, config: SidecarConfig, engine: WorkflowEngine) -> Self:
        """Around an engine of the caller's making."""
        made = cls.__new__(cls)
        made._config = config
        made._engine = engine
        return made

    @property
    def config(self) -> SidecarConfig:
        """The settings it was made with."""
        return self._config

    def workflow_engine(self) -> WorkflowEngine | None:
        """The engine; None when workflow_enabled is false."""
        return self._engine

    async def execute_workflow_pattern(self, pattern_id: int, context: PatternExecutionContext) -> PatternResult:
        """Runs a pattern's own net. Raises Unsupported when the engine is off, else as the engine's execute_pattern."""
        if self._engine is None:
            raise Unsupported("workflow engine", "set workflow_enabled to true")
        await self._engine.open()
        return await self._engine.execute_pattern(pattern_id, context)

    async def close(self) -> None:
        """Releases the store. Twice is fine."""
        if self._engine is not None:
            await self._engine.close()

    async def __aenter__(self) -> Self:
        if self._engine is not None:
            await self._engine.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
