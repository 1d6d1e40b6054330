"""A policy at work: from who somebody is to tenant, roles and grants; and why.

What its rules mean together:

- A rule applies to whom its `who` describes. Nothing is allowed without a rule that allows it; one rule that denies
  beats all that allow, wherever they stand.
- A rule narrowed to resources has a say about calls on such things only. It allows a call when the request itself
  shows that all it is about is among them; it denies a call unless the request shows that none of it is.
- Tenant and limits are those of the first rule that applies and has them. A tenant that has to be derived and cannot
  be leaves the caller without any right. `work_roles` of all rules add up; where they come to nothing the caller does
  the work that asks for no role, and is no application. `may_allow_unsound: false` of one suffices.

Rules are found by index (exact id, path segments, trust domain, issuer), and what they come to is kept per caller, so
that a decision is a look-up. Whoever calls the plain port of developer mode is judged by no policy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import structlog

from knhk_sidecar.identity.grants import (
    ABOUT,
    DENIED,
    EVERYTHING,
    NO_RULE,
    Grants,
    Narrowed,
    Resource,
    Verdict,
)
from knhk_sidecar.identity.permission import Permission
from knhk_sidecar.identity.policy_document import GRANTABLE, Derived, Document, Rule, Who, claim_text, is_tenant
from knhk_sidecar.identity.principal import Kind, Principal
from knhk_sidecar.identity.spiffe_id import SpiffeId

CALLERS_MAX: Final = 4_096  # as many as certificates are remembered; beyond that all are decided anew
WORK_ROLES_MAX: Final = 64  # of one caller: a token of a large organisation may list hundreds of groups

NO_WORK_ROLE: Final = ""
"""The role of a caller who should have roles in workflows, and whose identity gives none: no task asks for it. Without
any, the caller would pass for an application, which acts for everybody: the one whose token lacks a claim."""

Outcome = Literal["decides", "allows", "denies", "silent", "elsewhere", "not addressed"]

_log = structlog.get_logger(__name__)


class Step(NamedTuple):
    """What became of one rule while a question was answered."""

    rule: str
    effect: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why somebody may do something, or may not."""

    allowed: bool
    rule: str
    """The rule that decided; empty when none allows it."""
    permission: str
    roles: tuple[str, ...]
    """The roles that the rules which apply name."""
    tenant: str
    work_roles: tuple[str, ...]
    steps: tuple[Step, ...]
    needed: tuple[str, ...]
    """What would have to be otherwise; empty when it is allowed."""


class Policy:
    """One policy, compiled. It never changes but for what it remembers."""

    def __init__(self, document: Document, *, origin: str, unjudged: frozenset[Kind] = frozenset({"dev"})) -> None:
        """`origin` says where the document is from; callers of the kinds `unjudged` may do everything."""
        self.document = document
        self.origin = origin
        self.digest = hashlib.sha256(json.dumps(document.source, sort_keys=True).encode()).hexdigest()
        self.known: dict[Principal, Principal] = {}
        """Callers as they came -> as they were decided."""
        self._unjudged = unjudged
        self._index = _Index(document.rules)
        self._grants: dict[tuple[int, ...], Grants] = {}

    def decide(self, caller: Principal) -> Principal:
        """The caller with tenant, roles and grants. Never raises; without a rule the grants are empty."""
        decided = self.known.get(caller)
        if decided is None:
            if len(self.known) >= CALLERS_MAX:
                self.known.clear()
            decided = self.known[caller] = self._decided(caller)
        return decided

    def explain(self, caller: Principal, permission: Permission | None, resources: Sequence[Resource]) -> Explanation:
        """Why the caller may make a call that needs `permission` and is about `resources`, or may not."""
        decided = self.known.get(caller) or self._decided(caller)  # who is asked about has not come: not remembered
        verdict = decided.grants.verdict(permission).about(tuple(resources))
        named = permission.value if permission is not None else ""
        steps = tuple(self._steps(caller, permission, resources, verdict))
        applying = {rule.id: rule for rule in self.document.rules if rule.id in decided.grants.rules}
        roles = dict.fromkeys(role for rule in applying.values() if rule.effect == "allow" for role in rule.roles)
        needed = () if verdict.allowed else tuple(self._needed(caller, permission, verdict, steps))
        return Explanation(
            verdict.allowed,
            verdict.rule,
            named,
            tuple(roles),
            decided.tenant,
            tuple(filter(None, decided.roles)),
            steps,
            needed,
        )

    # ------------------------------------------------------------------------------------------------------- decision
    def _decided(self, caller: Principal) -> Principal:
        if caller.kind in self._unjudged:
            return dataclasses.replace(caller, grants=EVERYTHING)
        rules = self._index.applying(caller)
        allowing = [rule for rule in (self.document.rules[at] for at in rules) if rule.effect == "allow"]
        tenant = _tenant(allowing, caller)
        if tenant is None:
            found = next(rule for rule in allowing if rule.tenant is not None)
            _log.warning("no_tenant", principal=caller.name, rule=found.id, wanted=str(found.tenant))
            blocked = Verdict(False, found.id)
            nothing = Grants(MappingProxyType(dict.fromkeys(GRANTABLE, blocked)), tuple(rule.id for rule in allowing))
            return dataclasses.replace(caller, grants=nothing)
        grants = self._grants.get(rules)
        if grants is None:
            if len(self._grants) >= CALLERS_MAX:
                self._grants.clear()
            grants = self._grants[rules] = _granted([self.document.rules[at] for at in rules])
        return dataclasses.replace(caller, tenant=tenant, roles=_work_roles(allowing, caller), grants=grants)

    # ---------------------------------------------------------------------------------------------------- explanation
    def _steps(
        self, caller: Principal, permission: Permission | None, resources: Sequence[Resource], verdict: Verdict
    ) -> Iterable[Step]:
        if caller.kind in self._unjudged:
            why = f"callers of kind {caller.kind} are judged by no policy"
            yield Step(EVERYTHING.rules[0], "allow", "decides", why)
            return
        for rule in self.document.rules:
            outcome, reason = _judged(rule, caller, permission, resources)
            if rule.id == verdict.rule and verdict.rule != NO_RULE:
                outcome = "decides"
            yield Step(rule.id, rule.effect, outcome, reason)

    def _needed(
        self,
        caller: Principal,
        permission: Permission | None,
        verdict: Verdict,
        steps: Sequence[Step],
    ) -> Iterable[str]:
        if permission is None:
            yield "nobody may make this call: it has no permission"
            return
        blocking = [step.rule for step in steps if step.outcome in ("denies", "decides")]
        if verdict.rule != NO_RULE and not blocking:
            blocking = [verdict.rule]
        for each in blocking:
            rule = next(rule for rule in self.document.rules if rule.id == each)
            if rule.effect == "deny":
                yield f"rule {each} denies {permission.value}: it must not apply, whatever others allow"
            else:
                yield f"rule {each} takes the tenant from {rule.tenant}, which gives none"
        if any(step.outcome == "allows" for step in steps):
            return
        narrowed = [step for step in steps if step.outcome == "elsewhere" and step.effect == "allow"]
        for step in narrowed:
            yield f"rule {step.rule} would allow it: {step.reason}"
        holders = [role.name for role in self.document.roles.values() if permission in role.permissions]
        yield (
            f"a rule that applies to {caller.name} and allows {permission.value}"
            f" (roles that have it: {', '.join(sorted(holders))})"
        )


# ------------------------------------------------------------------------------------------------------------ who it is
class _Index:
    """The rules that can apply to a caller, by what is most particular in their `who`."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._at: dict[str, list[int]] = defaultdict(list)
        for position, rule in enumerate(rules):
            for who in rule.who:
                self._at[_mark(who)].append(position)

    def applying(self, caller: Principal) -> tuple[int, ...]:
        """The positions of the rules that apply, in the policy's order."""
        candidates = {position for mark in _marks(caller) for position in self._at.get(mark, ())}
        return tuple(sorted(position for position in candidates if applies(self._rules[position], caller)))


def _mark(who: Who) -> str:
    if who.spiffe_id:
        return who.spiffe_id
    if who.spiffe_prefix:
        return f"{who.spiffe_prefix}/"
    if who.trust_domain:
        return f"@{who.trust_domain}"
    return f"#{who.issuer}" if who.issuer else ""


def _marks(caller: Principal) -> Iterable[str]:
    yield ""
    if caller.issuer:
        yield f"#{caller.issuer}"
    if caller.spiffe_id is not None:
        yield str(caller.spiffe_id)
        domain = caller.spiffe_id.trust_domain.name
        yield f"@{domain}"
        beginning = f"spiffe://{domain}/"
        for segment in caller.spiffe_id.path[1:].split("/"):
            beginning = f"{beginning}{segment}/"
            yield beginning


def applies(rule: Rule, caller: Principal) -> bool:
    """Whether a rule is about a caller."""
    return caller.identified and any(not _unlike(who, caller) for who in rule.who)


def _unlike(who: Who, caller: Principal) -> str:
    """What about the caller is not as `who` wants it; empty when all is."""
    own = caller.spiffe_id
    if who.spiffe_id and str(own) != who.spiffe_id:
        return f"the SPIFFE id is not {who.spiffe_id}"
    if who.spiffe_prefix and (own is None or not f"{own}/".startswith(f"{who.spiffe_prefix}/")):
        return f"the SPIFFE id is not below {who.spiffe_prefix}"
    if who.trust_domain and (own is None or own.trust_domain.name != who.trust_domain):
        return f"the trust domain is not {who.trust_domain}"
    if who.credential and (caller.kind == "jwt") != (who.credential == "token"):
        return f"the caller did not come with a {who.credential}"
    if who.issuer and caller.issuer != who.issuer:
        return f"the issuer is not {who.issuer}"
    if who.subject and caller.subject != who.subject:
        return f"the subject is not {who.subject}"
    for name, wanted in who.claims.items():
        if wanted and not set(wanted).intersection(claim_texts(caller.claims, name)):
            return f"the claim {name} has none of {', '.join(wanted)}"
    return ""


def claim_texts(claims: Mapping[str, object], name: str) -> Sequence[str]:
    """The values of a claim as texts. A dotted name that is no claim leads into nested ones: `realm_access.roles`."""
    value: object = claims.get(name)
    if value is None and "." in name:
        value = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    several = value if isinstance(value, tuple | list) else (value,)
    return [text for each in several if (text := claim_text(each))]


def _derived(source: Derived, caller: Principal) -> Sequence[str]:
    if source.claim:
        return claim_texts(caller.claims, source.claim)
    segments = caller.spiffe_id.path[1:].split("/") if isinstance(caller.spiffe_id, SpiffeId) else []
    return segments[source.segment - 1 : source.segment]


def _tenant(rules: Iterable[Rule], caller: Principal) -> str | None:
    """The caller's tenant; None when it has to be derived and cannot be."""
    wanted = next((rule.tenant for rule in rules if rule.tenant is not None), None)
    if wanted is None:
        return caller.tenant
    if isinstance(wanted, str):
        return wanted
    found = _derived(wanted, caller)
    return found[0] if len(found) == 1 and is_tenant(found[0]) else None


def _work_roles(rules: Sequence[Rule], caller: Principal) -> tuple[str, ...]:
    found: dict[str, None] = dict.fromkeys(caller.roles)
    for rule in rules:
        for each in rule.work_roles:
            found.update(dict.fromkeys([each] if isinstance(each, str) else _derived(each, caller)))
    if not found and any(rule.work_roles for rule in rules):
        return (NO_WORK_ROLE,)
    return tuple(found)[:WORK_ROLES_MAX]


# --------------------------------------------------------------------------------------------------------- what it may
def _granted(rules: Sequence[Rule]) -> Grants:
    """What rules that apply to somebody come to."""
    return Grants(
        verdicts=MappingProxyType(
            {each: verdict for each in GRANTABLE if (verdict := _verdict(rules, each)) != DENIED}
        ),
        rules=tuple(rule.id for rule in rules),
        limits=next((rule.limits for rule in rules if rule.limits is not None), None),
        may_allow_unsound=all(rule.may_allow_unsound is not False for rule in rules),
        unsound_rule=next((rule.id for rule in rules if rule.may_allow_unsound is False), NO_RULE),
    )


def _verdict(rules: Sequence[Rule], permission: Permission) -> Verdict:
    saying = [rule for rule in rules if _has_a_say(rule, permission)]
    whole = [rule for rule in saying if not rule.selectors]
    if denial := _first(whole, "deny"):
        return Verdict(False, denial.id)
    denials = tuple(Narrowed(rule.id, rule.selectors) for rule in saying if rule.selectors and rule.effect == "deny")
    if allowance := _first(whole, "allow"):
        return Verdict(True, allowance.id, denials)
    allowances = tuple(
        Narrowed(rule.id, rule.selectors) for rule in saying if rule.selectors and rule.effect == "allow"
    )
    return Verdict(False, NO_RULE, denials, allowances) if allowances else DENIED


def _first(rules: Iterable[Rule], effect: str) -> Rule | None:
    return next((rule for rule in rules if rule.effect == effect), None)


def _has_a_say(rule: Rule, permission: Permission) -> bool:
    return permission in rule.permissions and all(permission in ABOUT[each.kind] for each in rule.selectors)


def _judged(
    rule: Rule, caller: Principal, permission: Permission | None, resources: Sequence[Resource]
) -> tuple[Outcome, str]:
    """What a rule has to say about a call, and why."""
    unlike = [_unlike(who, caller) for who in rule.who]
    if all(unlike):
        return "not addressed", "; ".join(unlike)
    if permission is None or permission not in rule.permissions:
        return "silent", f"it does not name {permission.value if permission is not None else 'this call'}"
    if not _has_a_say(rule, permission):
        return "silent", f"it is narrowed, and {permission.value} is not about such things"
    verb: Outcome = "allows" if rule.effect == "allow" else "denies"
    if not rule.selectors:
        return verb, f"{rule.effect}s {permission.value}"
    narrowed = Narrowed(rule.id, rule.selectors)
    covered = [narrowed.covers(resource) for resource in (resources or (Resource(),))]
    things = " and ".join(_things(narrowed))
    if rule.effect == "allow":
        if all(covered):
            return verb, f"the call is about {things}"
        unsaid = any(each is None for each in covered)
        told = "the request does not say that it is" if unsaid else "the request is not"
        return "elsewhere", f"{told} about {things} only"
    if all(each is False for each in covered):
        return "elsewhere", f"the request is not about {things}"
    if any(covered):
        return verb, f"the request is about {things}"
    return verb, f"the request does not show that it is about something else than {things}"


def _things(narrowed: Narrowed) -> Iterable[str]:
    for selector in narrowed.selectors:
        names = [*map(str, sorted(selector.exact, key=str)), *(f"{each}*" for each in selector.prefixes)]
        yield f"{selector.kind.value} {', '.join(names)}"
