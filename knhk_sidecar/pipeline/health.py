"""How the daemon is: the values behind grpc.health.v1, /health and GetStatus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Status = Literal["Healthy", "Degraded", "Unhealthy"]


@dataclass(frozen=True, slots=True)
class Component:
    """One part of the daemon; `detail` is one sentence for people."""

    name: str
    status: Status
    detail: str = ""


class HealthView(Protocol):
    """What the health endpoints read. Never blocks, and never touches the disk."""

    @property
    def service(self) -> str:
        """Name of the service."""
        ...

    @property
    def version(self) -> str:
        """Version of the product."""
        ...

    def components(self) -> Sequence[Component]:
        """Every part."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether calls are wanted here, and why not."""
        ...


def worst(components: Sequence[Component]) -> Status:
    """The status of the whole: that of its worst part."""
    found = {component.status for component in components}
    return "Unhealthy" if "Unhealthy" in found else "Degraded" if "Degraded" in found else "Healthy"
