"""Policy documents: what is wrong is told all at once, and the published schema says the same as the reader."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from knhk_sidecar.identity.grants import Rate
from knhk_sidecar.identity.permission import Permission
from knhk_sidecar.identity.policy_document import (
    BUILT_IN_ROLES,
    GRANTABLE,
    Derived,
    InvalidPolicy,
    default_document,
    of_value,
    parse,
    remarks,
    schema,
)

SAMPLE = Path(__file__).resolve().parents[3] / "knhk_sidecar" / "samples" / "policy.yaml"
WHO = {"spiffe_id": "spiffe://a.org/web"}


def rule(**members: object) -> dict[str, object]:
    """A good rule, with other members."""
    return {"id": "r", "who": WHO, "effect": "allow", "roles": ["viewer"], **members}


def policy(*rules: dict[str, object], **members: object) -> dict[str, object]:
    return {"version": 1, "rules": list(rules), **members}


def problems(value: object) -> list[tuple[str, str]]:
    """Path and hint of everything that is wrong."""
    with pytest.raises(InvalidPolicy) as caught:
        of_value(value)
    assert all(each.message and (each.hint or each.path.endswith("unsound")) for each in caught.value.problems)
    return [(each.path, each.hint) for each in caught.value.problems]


BAD: list[tuple[str, object, str]] = [
    ("no mapping", [], ""),
    ("nothing", None, ""),
    ("no version", {"rules": []}, "version"),
    ("another version", {"version": 2, "rules": []}, "version"),
    ("true is no version", {"version": True, "rules": []}, "version"),
    ("no rules", {"version": 1}, "rules"),
    ("rules that are no list", {"version": 1, "rules": {}}, "rules"),
    ("an unknown member", policy(rolls={}), "rolls"),
    ("a built-in role again", policy(roles={"admin": {"permissions": ["status"]}}), "roles.admin"),
    ("a role without permissions", policy(roles={"a": {"permissions": []}}), "roles.a"),
    ("a role that includes itself", policy(roles={"a": {"includes": ["a"]}}), "roles.a.includes"),
    ("an unknown role inside", policy(roles={"a": {"includes": ["b"], "permissions": ["*"]}}), "roles.a.includes[0]"),
    ("a bad name of a role", policy(roles={"A B": {"permissions": ["status"]}}), "roles.A B"),
    ("an unknown permission", policy(rule(permissions=["case.reads"])), "rules[0].permissions[0]"),
    ("an unknown group", policy(rule(permissions=["cases.*"])), "rules[0].permissions[0]"),
    ("health", policy(rule(permissions=["health"])), "rules[0].permissions[0]"),
    ("an unknown role", policy(rule(roles=["operators"])), "rules[0].roles[0]"),
    ("no id", policy({"who": WHO, "effect": "allow", "roles": ["viewer"]}), "rules[0].id"),
    ("a bad id", policy(rule(id="A rule!")), "rules[0].id"),
    ("a number as id", policy(rule(id=7)), "rules[0].id"),
    ("an id twice", policy(rule(), rule()), "rules[1].id"),
    ("no effect", policy({"id": "r", "who": WHO, "roles": ["viewer"]}), "rules[0].effect"),
    ("another effect", policy(rule(effect="permit")), "rules[0].effect"),
    ("nobody", policy({"id": "r", "effect": "allow", "roles": ["viewer"]}), "rules[0].who"),
    ("an empty who", policy(rule(who={})), "rules[0].who"),
    ("an empty list of who", policy(rule(who=[])), "rules[0].who"),
    ("anyone with more", policy(rule(who={"anyone": True, **WHO})), "rules[0].who.anyone"),
    ("not anyone", policy(rule(who={"anyone": False})), "rules[0].who.anyone"),
    ("no SPIFFE id", policy(rule(who={"spiffe_id": "http://a.org/web"})), "rules[0].who.spiffe_id"),
    ("a SPIFFE id with a star", policy(rule(who={"spiffe_id": "spiffe://a.org/*"})), "rules[0].who.spiffe_id"),
    ("a trust domain as prefix", policy(rule(who={"spiffe_prefix": "spiffe://a.org"})), "rules[0].who.spiffe_prefix"),
    ("dots in a prefix", policy(rule(who={"spiffe_prefix": "spiffe://a.org/x/../y"})), "rules[0].who.spiffe_prefix"),
    ("no trust domain", policy(rule(who={"trust_domain": "A.org"})), "rules[0].who.trust_domain"),
    ("another credential", policy(rule(who={"credential": "password"})), "rules[0].who.credential"),
    ("claims that are a list", policy(rule(who={"claims": ["ops"]})), "rules[0].who.claims"),
    ("a claim of nothing", policy(rule(who={"claims": {"groups": []}})), "rules[0].who.claims.groups"),
    ("a claim that is a mapping", policy(rule(who={"claims": {"groups": {"a": 1}}})), "rules[0].who.claims.groups"),
    ("an empty issuer", policy(rule(who={"issuer": ""})), "rules[0].who.issuer"),
    ("a second who that is wrong", policy(rule(who=[WHO, {"group": "ops"}])), "rules[0].who[1].group"),
    ("an allow that gives nothing", policy({"id": "r", "who": WHO, "effect": "allow"}), "rules[0]"),
    ("a deny of nothing", policy({"id": "r", "who": WHO, "effect": "deny"}), "rules[0]"),
    ("a deny with a tenant", policy(rule(effect="deny", tenant="a")), "rules[0].tenant"),
    ("a deny with limits", policy(rule(effect="deny", limits={"requests_per_second": 1})), "rules[0].limits"),
    ("a bad tenant", policy(rule(tenant="A B")), "rules[0].tenant"),
    ("a long tenant", policy(rule(tenant="a" * 65)), "rules[0].tenant"),
    ("a tenant from two places", policy(rule(tenant={"claim": "a", "segment": 1})), "rules[0].tenant"),
    ("a tenant from segment 0", policy(rule(tenant={"segment": 0})), "rules[0].tenant"),
    ("an empty work role", policy(rule(work_roles=[""])), "rules[0].work_roles[0]"),
    ("a rate of 0", policy(rule(limits={"requests_per_second": 0})), "rules[0].limits.requests_per_second"),
    ("a rate that is a text", policy(rule(limits={"requests_per_second": "9"})), "rules[0].limits.requests_per_second"),
    ("half a burst", policy(rule(limits={"requests_per_second": 9, "burst": 0.5})), "rules[0].limits.burst"),
    ("a flag that is a text", policy(rule(may_allow_unsound="no")), "rules[0].may_allow_unsound"),
    ("no resources", policy(rule(resources={})), "rules[0].resources"),
    ("an unknown kind", policy(rule(resources={"tasks": ["a"]})), "rules[0].resources.tasks"),
    ("a star inside", policy(rule(resources={"cases": ["a*b"]})), "rules[0].resources.cases[0]"),
    ("pattern 44", policy(rule(resources={"patterns": [44]})), "rules[0].resources.patterns[0]"),
    ("patterns without an end", policy(rule(resources={"patterns": ["5-"]})), "rules[0].resources.patterns[0]"),
    ("a pattern of many digits", policy(rule(resources={"patterns": ["9" * 5_000]})), "rules[0].resources.patterns[0]"),
    ("a pattern that is a flag", policy(rule(resources={"patterns": [True]})), "rules[0].resources.patterns[0]"),
    ("patterns backwards", policy(rule(resources={"patterns": ["5-1"]})), "rules[0].resources.patterns[0]"),
    (
        "things that no permission is about",
        policy(rule(roles=[], permissions=["backup"], resources={"cases": ["a"]})),
        "rules[0].resources",
    ),
    (
        "things that no permission is about together",
        policy(rule(permissions=["pattern.read"], resources={"cases": ["a"], "patterns": [1]})),
        "rules[0].resources",
    ),
]  # fmt: skip
ONLY_THE_READER = {  # what a schema cannot say, or says less exactly
    "a role that includes itself", "a role without permissions", "an unknown role inside", "an unknown role",
    "an id twice", "a SPIFFE id with a star", "dots in a prefix", "patterns backwards",
    "things that no permission is about", "things that no permission is about together",
}  # fmt: skip


@pytest.mark.parametrize(("value", "path"), [pytest.param(*each[1:], id=each[0]) for each in BAD])
def test_what_is_wrong_is_told_with_its_path_and_how_to_mend_it(value: object, path: str) -> None:
    assert path in [each for each, _ in problems(value)]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    value = policy(
        rule(id="A!", effect="no", roles=["operators"]),
        rule(who={"trust_domain": "A", "group": "x"}),
        roles={"a": {"permissions": ["x.read"]}},
        version=3,
    )
    assert {path for path, _ in problems(value)} >= {
        "version", "roles.a.permissions[0]", "rules[0].id", "rules[0].effect", "rules[0].roles[0]",
        "rules[1].who.trust_domain", "rules[1].who.group",
    }  # fmt: skip


def test_the_nearest_name_is_proposed() -> None:
    found = dict(problems(policy(rule(roles=["operators"], permissions=["case.reads"]), rulse=[])))
    assert found["rules[0].roles[0]"] == "did you mean operator?"
    assert found["rules[0].permissions[0]"] == "did you mean case.read?"
    assert found["rulse"] == "did you mean rules?"


@pytest.mark.parametrize(
    "text",
    [
        b"version: 1\nrules: []\nrules: []\n",
        b"version: 1\nrules: [",
        b"\xff\xfe",
        b"a: &a [x]\nb: *c\n",
        b"version: 1\nrules: []\n---\nversion: 1\nrules: []\n",
        b"a: " + b"[" * 100 + b"]" * 100,
        b"#" * (1024 * 1024 + 1),
        b"!!python/object/apply:os.system ['true']",
    ],
)
def test_hostile_text_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidPolicy):
        parse(text)


def test_json_is_read_too() -> None:
    assert [each.id for each in parse(json.dumps(policy(rule())).encode()).rules] == ["r"]


def test_the_sample_says_what_its_comments_say() -> None:
    document = parse(SAMPLE.read_bytes())
    rules = {each.id: each for each in document.rules}
    assert rules["web"].limits == Rate(500.0, 1000)
    assert rules["web"].may_allow_unsound is False
    assert rules["partners"].tenant == Derived(segment=2)
    assert rules["clerks"].work_roles == (Derived(claim="groups"),)
    assert rules["clerks"].permissions == {
        Permission.CASE_READ, Permission.WORKFLOW_READ, Permission.STATUS, Permission.WORK_READ, Permission.WORK_WRITE,
    }  # fmt: skip
    assert rules["payroll-is-left-alone"].effect == "deny"


def test_every_permission_is_in_a_built_in_role_and_only_admin_has_all() -> None:
    """A new class of permission that nobody can be given by a role fails here."""
    for permission in GRANTABLE:
        assert [role for role in BUILT_IN_ROLES.values() if permission in role.permissions]
    complete = [role.name for role in BUILT_IN_ROLES.values() if role.permissions >= set(GRANTABLE)]
    assert complete == ["admin"]
    assert set(Permission) - set(GRANTABLE) == {Permission.HEALTH}


def test_reading_roles_change_nothing_and_workers_see_no_cases() -> None:
    for name in ("viewer", "auditor"):
        assert not [each for each in BUILT_IN_ROLES[name].permissions if each.value.endswith(("write", "operate"))]
    assert BUILT_IN_ROLES["worker"].permissions == {Permission.STATUS, Permission.WORK_READ, Permission.WORK_WRITE}
    whole = {Permission.BACKUP, Permission.ADMIN_WRITE, Permission.CONNECTOR_WRITE, Permission.HOLD_WRITE}
    for name, role in BUILT_IN_ROLES.items():
        assert name == "admin" or not role.permissions & whole


def test_without_a_file_one_role_is_for_the_own_trust_domain() -> None:
    (only,) = default_document("a.org", "application").rules
    assert (only.who[0].trust_domain, only.roles, only.effect) == ("a.org", ("application",), "allow")
    assert default_document("a.org", "none").rules == ()


# -------------------------------------------------------------------------------------------------------------- schema
VALIDATOR = jsonschema.Draft202012Validator(json.loads(schema()))


def test_the_schema_knows_every_permission_and_role() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema()))
    listed = json.loads(schema())["$defs"]["permission"]["enum"]
    groups = {f"{each.value.partition('.')[0]}.*" for each in GRANTABLE if "." in each.value}
    assert set(listed) == {"*", *groups, *(each.value for each in GRANTABLE)}
    taken = json.loads(schema())["properties"]["roles"]["propertyNames"]["not"]["enum"]
    assert set(taken) == set(BUILT_IN_ROLES)


@pytest.mark.parametrize(("name", "value"), [pytest.param(each[0], each[1], id=each[0]) for each in BAD])
def test_the_schema_refuses_what_the_reader_refuses(name: str, value: object) -> None:
    assert VALIDATOR.is_valid(value) == (name in ONLY_THE_READER)


def test_the_schema_takes_what_the_reader_takes() -> None:
    good = [
        yaml.safe_load(SAMPLE.read_text()),
        policy(),
        policy(rule(who={"anyone": True}, tenant={"claim": "org"}, work_roles=["a", {"segment": 3}])),
        policy(rule(who=[WHO, {"claims": {"groups": ["a", "b"], "admin": True}}], limits={"requests_per_second": 0.5})),
        policy(rule(permissions=["*"], resources={"patterns": [1, "2-5"]})),
        policy(rule(effect="deny", permissions=["case.*"], roles=[], resources={"cases": ["a*"], "workflows": ["b"]})),
        policy(roles={"mine": {"includes": ["worker"], "description": "d"}}),
    ]
    for value in good:
        of_value(value)
        VALIDATOR.validate(value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (rule(who={"claims": {"groups": "ops"}}), "believes the claims"),
        (rule(who={"issuer": "https://idp", "claims": {"groups": "ops"}}), ""),
        (rule(who={"anyone": True}, roles=["application"]), "anyone who is identified"),
        (rule(who={"anyone": True}), ""),
        (rule(effect="deny", roles=["worker"], resources={"cases": ["a"]}), "StreamWorkItems"),
        (rule(effect="deny", roles=["worker"]), ""),
    ],
)
def test_what_is_seldom_meant_is_remarked(value: dict[str, object], told: str) -> None:
    found = " ".join(remark for _, remark in remarks(of_value(policy(value))))
    assert told in found
    assert bool(told) == bool(found)


def test_nothing_is_to_be_remarked_about_the_sample() -> None:
    assert list(remarks(parse(SAMPLE.read_bytes()))) == []
