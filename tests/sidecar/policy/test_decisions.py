"""What rules mean together: who they are about, deny over allow, narrowing, tenants; and that the quick way to a
decision says the same as the slow one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from knhk_sidecar.identity.grants import Beginning, Rate, Resource
from knhk_sidecar.identity.permission import Permission
from knhk_sidecar.identity.policy import CALLERS_MAX, NO_WORK_ROLE, Policy, applies
from knhk_sidecar.identity.policy_document import GRANTABLE, Document, of_value
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import (
    ANONYMOUS,
    Principal,
    of_certificate,
    of_developer,
    of_jwt_svid,
    of_local,
    of_token,
)
from knhk_sidecar.identity.spiffe_id import SpiffeId, TrustDomain
from knhk_sidecar.pipeline.explaining import Explaining

P = Permission
UNKNOWN = Resource()


def cert(text: str) -> Principal:
    return of_certificate(SpiffeId.parse(text))


def token(claims: dict[str, object], issuer: str = "https://idp", subject: str = "ann") -> Principal:
    return of_token(issuer, subject, claims)


def made(*rules: dict[str, object], **members: object) -> Policy:
    return Policy(of_value({"version": 1, "rules": list(rules), **members}), origin="test")


def allow(who: object, name: str = "a", **members: object) -> dict[str, object]:
    return {"id": name, "who": who, "effect": "allow", "roles": ["viewer"], **members}


def may(policy: Policy, caller: Principal, permission: Permission, *resources: Resource) -> tuple[bool, str]:
    """The verdict and its rule."""
    verdict = policy.decide(caller).grants.verdict(permission).about(resources)
    return verdict.allowed, verdict.rule


SVID = SpiffeId.parse("spiffe://a.org/ns/shop/sa/web")
FITTING: list[tuple[str, object, Principal, bool]] = [
    ("exact id", {"spiffe_id": str(SVID)}, of_certificate(SVID), True),
    ("exact id of a JWT-SVID", {"spiffe_id": str(SVID)}, of_jwt_svid(SVID, {}), True),
    ("another id", {"spiffe_id": str(SVID)}, cert("spiffe://a.org/ns/shop/sa/web2"), False),
    ("an id is no prefix", {"spiffe_id": "spiffe://a.org/ns"}, of_certificate(SVID), False),
    ("prefix", {"spiffe_prefix": "spiffe://a.org/ns/shop"}, of_certificate(SVID), True),
    ("prefix with a slash", {"spiffe_prefix": "spiffe://a.org/ns/shop/"}, of_certificate(SVID), True),
    ("the prefix itself", {"spiffe_prefix": str(SVID)}, of_certificate(SVID), True),
    ("prefix not on a border", {"spiffe_prefix": "spiffe://a.org/ns/sho"}, of_certificate(SVID), False),
    ("prefix longer than the id", {"spiffe_prefix": f"{SVID}/x"}, of_certificate(SVID), False),
    ("prefix of another domain", {"spiffe_prefix": "spiffe://b.org/ns/shop"}, of_certificate(SVID), False),
    ("trust domain", {"trust_domain": "a.org"}, of_certificate(SVID), True),
    ("trust domain as a URI", {"trust_domain": "spiffe://a.org"}, of_certificate(SVID), True),
    ("a longer trust domain", {"trust_domain": "a.org"}, cert("spiffe://a.org.evil.net/ns/shop"), False),
    ("certificate", {"trust_domain": "a.org", "credential": "certificate"}, of_certificate(SVID), True),
    ("no certificate", {"trust_domain": "a.org", "credential": "certificate"}, of_jwt_svid(SVID, {}), False),
    ("token", {"credential": "token"}, of_jwt_svid(SVID, {}), True),
    ("issuer", {"issuer": "https://idp"}, token({}), True),
    ("another issuer", {"issuer": "https://idp2"}, token({}), False),
    ("subject", {"issuer": "https://idp", "subject": "ann"}, token({}), True),
    ("another subject", {"issuer": "https://idp", "subject": "bob"}, token({}), False),
    ("claim", {"claims": {"groups": "ops"}}, token({"groups": "ops"}), True),
    ("claim in a list", {"claims": {"groups": "ops"}}, token({"groups": ["dev", "ops"]}), True),
    ("one of several", {"claims": {"groups": ["x", "ops"]}}, token({"groups": ["ops"]}), True),
    ("part of a claim's text", {"claims": {"groups": "ops"}}, token({"groups": "devops"}), False),
    ("claim that is absent", {"claims": {"groups": "ops"}}, token({}), False),
    ("claim that is true", {"claims": {"email_verified": True}}, token({"email_verified": True}), True),
    ("claim that is the text", {"claims": {"email_verified": True}}, token({"email_verified": "yes"}), False),
    ("number", {"claims": {"level": 3}}, token({"level": 3}), True),
    ("nested claim", {"claims": {"realm.roles": "ops"}}, token({"realm": {"roles": ["ops"]}}), True),
    ("dotted claim", {"claims": {"https://x.y/roles": "ops"}}, token({"https://x.y/roles": ["ops"]}), True),
    ("all of several claims", {"claims": {"a": "1", "b": "2"}}, token({"a": "1"}), False),
    ("a certificate has no claims", {"claims": {"groups": "ops"}}, of_certificate(SVID), False),
    ("a subject is no SPIFFE id", {"spiffe_id": str(SVID)}, token({"sub": str(SVID)}, subject=str(SVID)), False),
    ("everything has to hold", {"trust_domain": "a.org", "issuer": "https://idp"}, of_certificate(SVID), False),
    ("either", [{"issuer": "x"}, {"trust_domain": "a.org"}], of_certificate(SVID), True),
    ("neither", [{"issuer": "x"}, {"trust_domain": "b.org"}], of_certificate(SVID), False),
    ("anyone", {"anyone": True}, token({}), True),
    ("anyone is not the unknown", {"anyone": True}, ANONYMOUS, False),
]


@pytest.mark.parametrize(("who", "caller", "fits"), [pytest.param(*each[1:], id=each[0]) for each in FITTING])
def test_whom_a_rule_is_about(who: object, caller: Principal, fits: bool) -> None:
    assert may(made(allow(who)), caller, P.CASE_READ) == ((True, "a") if fits else (False, ""))


def test_nothing_is_allowed_without_a_rule() -> None:
    caller = cert("spiffe://a.org/x")
    for permission in GRANTABLE:
        assert may(made(), caller, permission) == (False, "")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_deny_wins_wherever_it_stands(order: Sequence[int]) -> None:
    rules: list[dict[str, object]] = [
        {"id": "all", "who": {"anyone": True}, "effect": "allow", "permissions": ["*"]},
        {"id": "never", "who": {"trust_domain": "a.org"}, "effect": "deny", "permissions": ["case.write"]},
        {"id": "me", "who": {"spiffe_id": "spiffe://a.org/x"}, "effect": "allow", "roles": ["admin"]},
    ]
    policy = made(*(rules[at] for at in order))
    assert may(policy, cert("spiffe://a.org/x"), P.CASE_WRITE) == (False, "never")
    assert may(policy, cert("spiffe://a.org/x"), P.CASE_READ)[0]
    assert may(policy, cert("spiffe://b.org/x"), P.CASE_WRITE) == (True, "all")


# ----------------------------------------------------------------------------------------------------------- narrowing
ORDERS = Resource(workflow="order-1")


@pytest.mark.parametrize(
    ("resources", "allowed"),
    [
        ((ORDERS,), True),
        ((Resource("returns"),), True),
        ((Resource("returns-2"),), False),
        ((UNKNOWN,), False),
        ((), False),
        ((ORDERS, Resource("payroll")), False),
        ((ORDERS, UNKNOWN), False),
        ((Resource(case="order-1"),), False),
        ((Resource(Beginning("order-")),), True),
        ((Resource(Beginning("order-4")),), True),
        ((Resource(Beginning("ord")),), False),
    ],
)
def test_an_allowance_counts_for_what_is_shown_to_be_inside(resources: tuple[Resource, ...], allowed: bool) -> None:
    policy = made(allow({"anyone": True}, resources={"workflows": ["order-*", "returns"]}))
    assert may(policy, cert("spiffe://a.org/x"), P.CASE_READ, *resources)[0] is allowed


@pytest.mark.parametrize(
    ("resources", "allowed"),
    [
        ((Resource(case="order-1"),), True),
        ((Resource(case="payroll-1"),), False),
        ((UNKNOWN,), False),
        ((), False),
        ((Resource(case="order-1"), Resource(case="payroll-1")), False),
        ((Resource("order"),), False),
        ((Resource(case=Beginning("order-")),), True),
        ((Resource(case=Beginning("pay")),), False),
        ((Resource(case=Beginning("payroll-7")),), False),
        ((Resource(case=""),), True),
    ],
)
def test_a_denial_counts_unless_it_is_shown_to_be_outside(resources: tuple[Resource, ...], allowed: bool) -> None:
    deny: dict[str, object] = {
        "id": "d", "who": {"anyone": True}, "effect": "deny", "permissions": ["*"],
        "resources": {"cases": ["payroll-*"]},
    }  # fmt: skip
    policy = made(allow({"anyone": True}, roles=["admin"]), deny)
    found = may(policy, cert("spiffe://a.org/x"), P.CASE_WRITE, *resources)
    assert found == ((True, "a") if allowed else (False, "d"))
    # It has no say about calls that are not about cases.
    assert may(policy, cert("spiffe://a.org/x"), P.WORKFLOW_WRITE, Resource("payroll-1")) == (True, "a")


def test_several_kinds_have_to_fit_together() -> None:
    policy = made(allow({"anyone": True}, resources={"workflows": ["order"], "cases": ["eu-*"]}))
    caller = cert("spiffe://a.org/x")
    assert may(policy, caller, P.CASE_READ, Resource("order", "eu-1"))[0]
    assert not may(policy, caller, P.CASE_READ, Resource("order", "us-1"))[0]
    assert not may(policy, caller, P.CASE_READ, Resource(None, "eu-1"))[0]
    assert not may(policy, caller, P.WORKFLOW_READ, Resource("order"))[0]  # not about cases at all


def test_patterns_are_numbers() -> None:
    policy = made(allow({"anyone": True}, permissions=["pattern.execute"], resources={"patterns": [9, "1-3"]}))
    caller = cert("spiffe://a.org/x")
    found = [n for n in range(1, 44) if may(policy, caller, P.PATTERN_EXECUTE, Resource(pattern=n))[0]]
    assert found == [1, 2, 3, 9]
    assert not may(policy, caller, P.CASE_READ, Resource(pattern=1))[0]


# --------------------------------------------------------------------------------------------- tenant and what is given
def test_the_first_rule_with_a_tenant_decides_and_the_default_is_for_the_rest() -> None:
    policy = made(
        allow({"spiffe_id": "spiffe://a.org/none"}, "r0"),
        allow({"spiffe_id": "spiffe://a.org/x"}, "r1", tenant="one"),
        allow({"spiffe_prefix": "spiffe://a.org/x"}, "r2", tenant="two"),
    )
    tenants = [policy.decide(cert(f"spiffe://a.org/{path}")).tenant for path in ("none", "x", "x/y")]
    assert tenants == ["default", "one", "two"]


@pytest.mark.parametrize(
    ("source", "caller", "tenant"),
    [
        ({"segment": 2}, cert("spiffe://a.org/ns/shop/sa/web"), "shop"),
        ({"segment": 5}, cert("spiffe://a.org/ns/shop/sa/web"), None),
        ({"segment": 2}, cert("spiffe://a.org/ns/Shop/sa/web"), None),
        ({"segment": 1}, token({}), None),
        ({"claim": "org"}, token({"org": "shop"}), "shop"),
        ({"claim": "org"}, token({"org": ["shop"]}), "shop"),
        ({"claim": "org"}, token({"org": ["shop", "bank"]}), None),
        ({"claim": "org"}, token({"org": "../bank"}), None),
        ({"claim": "org"}, token({"org": ""}), None),
        ({"claim": "org"}, token({}), None),
    ],
)
def test_a_tenant_is_derived_or_the_caller_has_no_right(source: object, caller: Principal, tenant: str | None) -> None:
    policy = made(allow({"anyone": True}, tenant=source, roles=["admin"]))
    if tenant is not None:
        assert policy.decide(caller).tenant == tenant
        assert may(policy, caller, P.CASE_READ) == (True, "a")
    else:
        assert [may(policy, caller, each) for each in GRANTABLE] == [(False, "a")] * len(GRANTABLE)
        explained = policy.explain(caller, P.CASE_READ, ())
        assert not explained.allowed
        assert "gives none" in explained.needed[0]


def test_work_roles_add_up_and_give_no_permission() -> None:
    policy = made(
        {"id": "a", "who": {"anyone": True}, "effect": "allow", "work_roles": ["clerk", {"claim": "groups"}]},
        {"id": "b", "who": {"issuer": "https://idp"}, "effect": "allow", "work_roles": ["manager", "clerk"]},
    )
    decided = policy.decide(token({"groups": ["ops", "admin"]}))
    assert decided.roles == ("clerk", "ops", "admin", "manager")
    assert not any(decided.grants.verdict(each).allowed for each in GRANTABLE)


def test_who_lacks_the_claim_that_roles_come_from_is_no_application() -> None:
    policy = made(allow({"issuer": "https://idp"}, work_roles=[{"claim": "groups"}]), allow({"anyone": True}, "b"))
    assert policy.decide(token({"groups": ["clerk"]})).roles == ("clerk",)
    lacking: list[dict[str, object]] = [{}, {"groups": []}, {"groups": ""}, {"groups": {"clerk": 1}}]
    for claims in lacking:
        caller = token(claims)
        assert policy.decide(caller).roles == (NO_WORK_ROLE,)
        assert policy.explain(caller, P.CASE_READ, ()).work_roles == ()
    assert policy.decide(cert("spiffe://a.org/app")).roles == ()  # no rule gives it any: an application


def test_limits_and_unsound_workflows() -> None:
    policy = made(
        allow({"spiffe_id": "spiffe://a.org/x"}, "a", limits={"requests_per_second": 5}),
        allow({"anyone": True}, "b", limits={"requests_per_second": 50.5, "burst": 7}),
        allow({"trust_domain": "b.org"}, "c", may_allow_unsound=False),
        allow({"anyone": True}, "d", may_allow_unsound=True),
    )
    first, second = (policy.decide(cert(f"spiffe://{each}/x")).grants for each in ("a.org", "b.org"))
    assert (first.limits, second.limits) == (Rate(5.0, 5), Rate(50.5, 7))
    assert (first.may_allow_unsound, second.may_allow_unsound, second.unsound_rule) == (True, False, "c")


# ------------------------------------------------------------------------------------------------------------ built-in
def test_without_a_file_the_own_trust_domain_has_its_role_and_others_have_none() -> None:
    policies = Policies.without_file("a.org", "application")
    own, federated = cert("spiffe://a.org/x"), cert("spiffe://b.org/x")
    assert may(policies.current, own, P.CASE_WRITE) == (True, "own-trust-domain")
    assert may(policies.current, own, P.BACKUP) == (False, "")
    assert [may(policies.current, federated, each)[0] for each in GRANTABLE] == [False] * len(GRANTABLE)
    assert may(policies.current, of_developer(TrustDomain("a.org")), P.BACKUP)[0]
    assert may(policies.current, of_local(TrustDomain("a.org")), P.BACKUP)[0]


def test_a_file_judges_local_callers_but_never_developers() -> None:
    policy = made()
    assert may(policy, of_developer(TrustDomain("a.org")), P.BACKUP)[0]
    assert not may(policy, of_local(TrustDomain("a.org")), P.BACKUP)[0]


def test_what_is_remembered_is_bounded_and_changes_nothing() -> None:
    policy = made(allow({"trust_domain": "a.org"}, tenant={"segment": 1}))
    for number in range(CALLERS_MAX + 10):
        decided = policy.decide(cert(f"spiffe://a.org/t{number}"))
        assert (decided.tenant, decided.grants.verdict(P.CASE_READ).allowed) == (f"t{number}", True)
    assert len(policy.known) <= CALLERS_MAX
    caller = cert("spiffe://a.org/again")
    assert policy.decide(caller) is policy.decide(caller)
    assert policy.decide(policy.decide(caller)).tenant == "again"


# --------------------------------------------------------------------------------------------------------------- oracle
SOME = (P.CASE_READ, P.CASE_WRITE, P.WORK_WRITE, P.PATTERN_EXECUTE, P.BACKUP)


def naive(document: Document, caller: Principal, permission: Permission, resource: Resource) -> bool:
    """The meaning of a policy, rule by rule, as the documentation words it."""
    allowed = False
    for rule in document.rules:
        if not applies(rule, caller) or permission not in rule.permissions:
            continue
        inside: bool | None = True
        for selector in rule.selectors:
            about = {"workflows": SOME[:3], "cases": SOME[:3], "patterns": SOME[3:4]}[selector.kind.value]
            name = {"workflows": resource.workflow, "cases": resource.case, "patterns": resource.pattern}[
                selector.kind.value
            ]
            if permission not in about:
                inside = False
            elif name is None and inside is True:
                inside = None
            elif name is not None and not any(
                name == each or (isinstance(name, str) and name.startswith(prefix))
                for each, prefix in itertools.product(selector.exact or {""}, selector.prefixes or ("\0",))
            ):
                inside = False
        if rule.effect == "deny" and inside is not False:
            return False
        allowed |= rule.effect == "allow" and inside is True
    return allowed


def test_the_quick_way_says_the_same_as_the_slow_one() -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    ids = [f"spiffe://{domain}/{'/'.join(path)}" for domain in ("a.org", "b.org") for path in ("x", "xy", "xyz", "z")]
    callers = [*map(cert, ids), *(token({"groups": groups}) for groups in (["a"], ["a", "b"], []))]
    names = (None, "a", "a-1", "b")
    resources = [Resource(w, c, p) for w in names for c in names for p in (None, 1, 2)]

    def who() -> dict[str, object]:
        kind = draw.randrange(5)
        if kind == 0:
            return {"spiffe_id": draw.choice(ids)}
        if kind == 1:
            return {"spiffe_prefix": draw.choice(ids)}
        if kind == 2:
            return {"trust_domain": draw.choice(("a.org", "b.org"))}
        return {"claims": {"groups": draw.choice("ab")}} if kind == 3 else {"anyone": True}

    def narrowed() -> dict[str, object]:
        kind = draw.choice(("workflows", "cases", "patterns"))
        return {"resources": {kind: [1] if kind == "patterns" else draw.sample(["a", "a-*", "b", "*"], 2)}}

    for _ in range(80):
        rules = []
        for number in range(draw.randrange(7)):
            permissions = [each.value for each in draw.sample(SOME, 2)]
            members = narrowed() if draw.random() < 0.5 else {}
            rule = {"id": f"r{number}", "who": [who() for _ in range(draw.randint(1, 2))], "permissions": permissions}
            rules.append({**rule, "effect": draw.choice(("allow", "allow", "deny")), **members})
        rules = [each for each in rules if sensible(each)]
        policy = made(*rules)
        for caller, permission in itertools.product(callers, SOME):
            for resource in draw.sample(resources, 6):
                found = may(policy, caller, permission, resource)[0]
                told = policy.explain(caller, permission, (resource,))
                wanted = naive(policy.document, caller, permission, resource)
                assert found == wanted == told.allowed, (seed, rules, caller.name, permission, resource)
                assert told.allowed or told.needed


def sensible(rule: dict[str, object]) -> bool:
    """A document with a rule that can have no effect is refused as a whole."""
    from knhk_sidecar.identity.policy_document import InvalidPolicy

    try:
        made(rule)
    except InvalidPolicy:
        return False
    return True


def test_who_is_only_asked_about_is_not_taken_for_somebody_who_came() -> None:
    rule = {"id": "ops", "who": {"issuer": "https://i.org", "claims": {"groups": "ops"}}, "effect": "allow"}
    policies = Policies(made({**rule, "permissions": ["case.read"]}))
    explaining = Explaining(policies)
    assert explaining.explain("jwt:https://i.org#alice", "GetCase", "", {"groups": ["ops"]}).allowed
    assert not explaining.explain("jwt:https://i.org#alice", "GetCase").allowed
    assert not policies.current.known


def test_a_subject_may_have_a_sharp_sign() -> None:
    """An issuer has none: it is an address without a fragment."""
    rule = {"id": "ops", "who": {"issuer": "https://i.org", "subject": "a#b"}, "effect": "allow"}
    explaining = Explaining(Policies(made({**rule, "permissions": ["case.read"]})))
    assert explaining.explain("jwt:https://i.org#a#b", "GetCase").allowed
    assert not explaining.explain("jwt:https://i.org#b", "GetCase").allowed
