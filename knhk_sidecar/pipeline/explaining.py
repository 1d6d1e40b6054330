"""Answers to "may this caller do that, and why": the policy, asked by the names that people use.

The daemon's AdminService asks the policy in force; `knhk policy explain --file` asks one that is nowhere in force yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from knhk_sidecar.identity.grants import Resource
from knhk_sidecar.identity.permission import Permission
from knhk_sidecar.identity.policy import Explanation
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import Principal, of_certificate, of_jwt_svid, of_token
from knhk_sidecar.identity.spiffe_id import InvalidSpiffeId, SpiffeId
from knhk_sidecar.pipeline.permissions import PERMISSIONS
from knhk_workflow import InvalidInput

_TOKEN_NAME = re.compile(r"jwt:(?P<issuer>[^#]+)#(?P<subject>.+)", re.DOTALL)
_RESOURCE: Final = "cases/order-17, workflows/order-approval or patterns/3"


class Explaining:
    """The policy in force, for questions."""

    def __init__(self, policies: Policies, plain: Principal | None = None) -> None:
        """`plain` is who comes without a credential."""
        self.policies = policies
        self._plain = plain

    def explain(
        self, principal: str, method: str, resource: str = "", claims: Mapping[str, object] | None = None
    ) -> Explanation:
        """Why somebody may call a method or not. Raises InvalidInput for names that mean nothing.

        `principal` is a SPIFFE id or `jwt:ISSUER#SUBJECT`, `method` the full or the bare name of an RPC. `claims` are
        those of a token; None: those that the caller came with last, if it has come.
        """
        path = method_named(method)
        caller = self._caller(principal, claims)
        permission = PERMISSIONS[path]
        if permission is Permission.HEALTH:
            return Explanation(True, "", permission.value, (), caller.tenant, (), (), ())
        return self.policies.current.explain(caller, permission, resources_named(resource))

    def _caller(self, name: str, claims: Mapping[str, object] | None) -> Principal:
        if claims is None:
            if self._plain is not None and name == self._plain.name:
                return self._plain
            if (seen := self.policies.seen(name)) is not None:
                return seen
        return principal_named(name, claims)


def method_named(name: str) -> str:
    """The path of an RPC by its path, its full name (`knhk.sidecar.v1.CaseService/GetCase`, with a dot too) or its bare
    one. Raises InvalidInput."""
    wanted = name.strip().lstrip("/")
    dotted = wanted.rpartition(".")
    for path in PERMISSIONS:
        if wanted in (path[1:], path.rpartition("/")[2]) or path[1:] == f"{dotted[0]}/{dotted[2]}":
            return path
    raise InvalidInput.field("method", f"{name[:100]!r} is no call", "for example GetCase")


def principal_named(name: str, claims: Mapping[str, object] | None) -> Principal:
    """Somebody by name. Raises InvalidInput."""
    token = _TOKEN_NAME.fullmatch(name)
    if token is not None:
        return of_token(token["issuer"], token["subject"], claims or {})
    try:
        spiffe_id = SpiffeId.parse(name)
    except InvalidSpiffeId as error:
        hint = "for example spiffe://example.org/ns/shop/sa/web, or jwt:https://issuer.example.org#alice"
        raise InvalidInput.field("principal", f"{name[:100]!r} {error}", hint) from error
    return of_jwt_svid(spiffe_id, claims) if claims else of_certificate(spiffe_id)


def resources_named(text: str) -> tuple[Resource, ...]:
    """`cases/42`, `workflows/order`, `patterns/3`; nothing: unknown. Raises InvalidInput."""
    if not text:
        return (Resource(),)
    kind, slash, name = text.partition("/")
    if slash and name:
        if kind == "cases":
            return (Resource(case=name),)
        if kind == "workflows":
            return (Resource(workflow=name),)
        if kind == "patterns" and name.isascii() and name.isdecimal():
            return (Resource(pattern=int(name)),)
        if kind == "items":
            return (Resource(case=name.partition("@")[2] or None),)
    raise InvalidInput.field("resource", f"{text[:100]!r} is nothing that rules are narrowed to", f"write {_RESOURCE}")
