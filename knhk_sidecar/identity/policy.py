"""A policy at work: from who somebody is to tenant, roles and grants.

Filled in by the rules of a document (`policy_document`); see there for what rules say.
"""

from __future__ import annotations

from typing import Protocol

from knhk_sidecar.identity.principal import Principal


class Deciding(Protocol):
    """What turns an identity into a caller with tenant, roles and grants; costs a look-up for a caller seen before."""

    def decide(self, caller: Principal) -> Principal:
        """The same caller as policy sees it now. Never raises: without a rule the grants are empty."""
        ...
