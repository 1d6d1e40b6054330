"""What connectors do, as numbers: their calls, connections and breakers.

Labels are names of connectors that an operator gave, and at most CONNECTORS_TOLD of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from knhk_sidecar.telemetry.counters import Family
from knhk_workflow import ConnectorView, WorkflowEngine

CONNECTORS_TOLD: Final = 200  # series of each family; whoever has more looks at ListConnectors


def connections(engine: WorkflowEngine) -> Iterable[Family]:
    """The numbers of all connectors, now."""
    made, views = engine.connector_totals()
    told = views[:CONNECTORS_TOLD]
    labels = [(("connector", view.name), ("kind", view.kind)) for view in told]

    def family(name: str, doc: str, values: Iterable[float]) -> Family:
        return Family(name, doc, "gauge", list(zip(labels, values, strict=True)))

    yield Family("connector_calls_total", "Calls that connectors made.", "counter", [((), made)])
    yield family("connector_calls_active", "Calls being made.", (view.active for view in told))
    yield family("connector_calls_waiting", "Calls that wait for their turn or a breaker.", (v.waiting for v in told))
    yield family("connector_pool_active", "Connections in use.", (view.pool_active for view in told))
    yield family("connector_pool_size", "Connections that are open.", (view.pool_size for view in told))
    yield family("connector_pool_waiting", "Calls that wait for a connection.", (view.pool_waiting for view in told))
    yield family("connector_breakers_open", "Targets that are left alone.", (_open(view) for view in told))


def _open(view: ConnectorView) -> int:
    return sum(state != "closed" for _, state in view.breakers)
