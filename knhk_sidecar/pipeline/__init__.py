"""What happens to every call, over gRPC and REST alike, before and after the service does its work.

    observe( audit( translate( identify( authorize( throttle( admit( handler ) ) ) ) ) ) )

One order, written down in `pipeline.py`; a service can be reached through it only. The stages know identities, limits
and errors, but neither a transport nor a store; what a call means is the services' business.
"""

from __future__ import annotations

from knhk_sidecar.pipeline.call import Call, Method
from knhk_sidecar.pipeline.pipeline import Auditing, Limits, Pipeline
from knhk_sidecar.pipeline.stages import Refusal

__all__ = ["Auditing", "Call", "Limits", "Method", "Pipeline", "Refusal"]
