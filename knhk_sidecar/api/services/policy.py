"""The part of AdminService that is about who may do what. Deciding is the pipeline's; this tells of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from knhk_sidecar.api import pb
from knhk_sidecar.identity import policy_document
from knhk_sidecar.identity.policy import Explanation
from knhk_sidecar.identity.policy_document import Role
from knhk_sidecar.identity.policy_source import Policies
from knhk_workflow import CallMeta, InvalidInput, Unsupported, strict_json

CLAIMS_BYTES_MAX: Final = 64 * 1024  # a token that carries more is refused long before policy


class PolicyView(Protocol):
    """The policy in force, for questions."""

    @property
    def policies(self) -> Policies:
        """Which policy that is."""
        ...

    def explain(
        self, principal: str, method: str, resource: str = "", claims: Mapping[str, object] | None = None
    ) -> Explanation:
        """Why somebody may call a method or not. Raises InvalidInput for names that mean nothing."""
        ...


class PolicyCalls:
    """Questions about the policy."""

    def __init__(self, view: PolicyView | None) -> None:
        self._policy = view

    async def explain_policy(self, request: pb.ExplainPolicyRequest, meta: CallMeta) -> pb.ExplainPolicyResponse:
        """May somebody do something, and why; nothing is done."""
        view = self._view("ExplainPolicy")
        found = view.explain(
            request.principal or meta.principal, request.method, request.resource, _claims(request.claims_json)
        )
        return explained(found, view.policies.current.digest)

    async def get_policy(self, request: pb.GetPolicyRequest, meta: CallMeta) -> pb.GetPolicyResponse:
        """The policy in force."""
        policies = self._view("GetPolicy").policies
        policy = policies.current
        return pb.GetPolicyResponse(
            policy_json=json.dumps(policy.document.source).encode(),
            origin=policy.origin,
            digest=policy.digest,
            problem=policies.problem,
            roles=roles_told(policy.document.roles.values()),
            schema_json=policy_document.schema(),
        )

    def _view(self, call: str) -> PolicyView:
        if self._policy is None:
            raise Unsupported(f"AdminService.{call}")
        return self._policy


def explained(found: Explanation, digest: str) -> pb.ExplainPolicyResponse:
    """An explanation as a message."""
    return pb.ExplainPolicyResponse(
        allowed=found.allowed,
        rule=found.rule,
        roles=found.roles,
        tenant=found.tenant,
        steps=[f"{step.rule} ({step.effect}) {step.outcome}: {step.reason}" for step in found.steps],
        rules=[
            pb.PolicyStep(rule=step.rule, effect=step.effect, outcome=step.outcome, reason=step.reason)
            for step in found.steps
        ],
        permission=found.permission,
        needed=found.needed,
        work_roles=found.work_roles,
        policy_digest=digest,
    )


def roles_told(roles: Iterable[Role]) -> list[pb.PolicyRole]:
    """Roles as messages."""
    return [
        pb.PolicyRole(
            name=role.name,
            description=role.description,
            permissions=sorted(each.value for each in role.permissions),
            built_in=role.built_in,
        )
        for role in roles
    ]


def _claims(text: bytes) -> Mapping[str, object] | None:
    if not text:
        return None
    value = strict_json(text, max_bytes=CLAIMS_BYTES_MAX, path="claims_json")
    if not isinstance(value, dict):
        raise InvalidInput.field("claims_json", "must be a JSON object", '{"groups": ["ops"]}')
    return value
