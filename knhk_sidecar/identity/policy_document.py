"""The policy document: who may do what, as text, read strictly and told of with all its problems at once.

    version: 1
    roles:
      clerks-app: {includes: [worker], permissions: [case.read]}
    rules:
      - id: shop
        who: {spiffe_prefix: spiffe://example.org/ns/shop}
        effect: allow
        roles: [application]
        resources: {workflows: ["order-*"]}
        tenant: shop

A rule says whom it is about (`who`: a mapping whose members all have to hold, or a list of such of which one has to),
what it allows or denies (roles and permissions), of which things (`resources`), and what else holds for those whom it
allows: their tenant, what they are in workflows (`work_roles`), limits. What rules mean together is `policy`'s to say.

YAML and JSON mean the same; `policy.schema.json` describes the shape.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources as package_files
from types import MappingProxyType
from typing import Final, Literal, TypeVar, cast

from knhk_sidecar.identity.grants import ABOUT, Kind, Rate, Selector
from knhk_sidecar.identity.permission import Permission
from knhk_sidecar.identity.spiffe_id import InvalidSpiffeId, SpiffeId, TrustDomain
from knhk_workflow import InvalidInput, Problem, strict_yaml

VERSION: Final = 1
DOCUMENT_BYTES_MAX: Final = 1024 * 1024  # 1,000 rules with descriptions are about 300 KB
RULES_MAX: Final = 5_000  # a caller's rules are found by index; the document stays readable in one second
ROLES_MAX: Final = 500
NAMES_MAX: Final = 1_000  # elements of one list
NAME_CHARS_MAX: Final = 64  # of rules, roles and tenants: they are in every log line or key
TEXT_CHARS_MAX: Final = 2_048  # of descriptions, ids and claims
RATE_MAX: Final = 1_000_000.0
PATTERN_MAX: Final = 43
SCHEMA_FILE: Final = "policy.schema.json"

Effect = Literal["allow", "deny"]
Credential = Literal["certificate", "token"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_PATTERNS = re.compile(r"(?P<low>[0-9]{1,3})(?:-(?P<high>[0-9]{1,3}))?")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NAME_HINT: Final = f"small letters, digits, and . _ - between them, at most {NAME_CHARS_MAX}"
T = TypeVar("T")

GRANTABLE: Final = tuple(each for each in Permission if each is not Permission.HEALTH)
"""The permissions of policies: health is everybody's, and no rule can change that."""

_BY_VALUE: Final = {each.value: each for each in GRANTABLE}


class InvalidPolicy(Exception):
    """A document that cannot be used; `problems` has every reason, `str()` one line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def is_tenant(text: str) -> bool:
    """Whether a text can name a tenant."""
    return len(text) <= NAME_CHARS_MAX and _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Who:
    """Whom a rule is about. Everything that is given has to hold; nothing given: anyone identified."""

    spiffe_id: str = ""
    spiffe_prefix: str = ""
    """The beginning of a SPIFFE id up to the end of a path segment."""
    trust_domain: str = ""
    credential: Credential | None = None
    issuer: str = ""
    subject: str = ""
    claims: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Claim -> the texts of which it has to be, or to contain, one."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A name that is taken from the identity: from a claim, or from a segment of the SPIFFE id's path (1 = first)."""

    claim: str = ""
    segment: int = 0

    def __str__(self) -> str:
        return f"claim {self.claim}" if self.claim else f"segment {self.segment} of the SPIFFE id"


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of permissions."""

    name: str
    permissions: frozenset[Permission]
    description: str = ""
    built_in: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, its roles resolved to permissions."""

    id: str
    who: tuple[Who, ...]
    effect: Effect
    roles: tuple[str, ...] = ()
    permissions: frozenset[Permission] = frozenset()
    selectors: tuple[Selector, ...] = ()
    tenant: str | Derived | None = None
    work_roles: tuple[str | Derived, ...] = ()
    limits: Rate | None = None
    may_allow_unsound: bool | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A whole policy. `roles` has the built-in ones too; `source` is its plain value, for showing."""

    roles: Mapping[str, Role]
    rules: tuple[Rule, ...]
    source: Mapping[str, object]


# ------------------------------------------------------------------------------------------------------ built-in roles
_P = Permission
_VIEWER = frozenset(
    {
        _P.STATUS, _P.REFLECT, _P.PATTERN_READ, _P.WORKFLOW_READ, _P.CASE_READ, _P.WORK_READ, _P.SCHEDULE_READ,
        _P.SUBSCRIPTION_READ, _P.CONNECTOR_READ, _P.DEAD_LETTER_READ, _P.HOLD_READ,
    }
)  # fmt: skip
_WORKER = frozenset({_P.STATUS, _P.WORK_READ, _P.WORK_WRITE})
_APPLICATION = (_VIEWER - {_P.CONNECTOR_READ, _P.DEAD_LETTER_READ, _P.HOLD_READ}) | {
    _P.PATTERN_EXECUTE, _P.WORKFLOW_WRITE, _P.CASE_WRITE, _P.WORK_WRITE, _P.WORK_OPERATE, _P.SCHEDULE_WRITE,
    _P.SUBSCRIPTION_WRITE,
}  # fmt: skip
_OPERATOR = _VIEWER | _APPLICATION | {_P.CASE_OPERATE, _P.DEAD_LETTER_OPERATE, _P.ADMIN_READ}
_AUDITOR = _VIEWER | {_P.AUDIT_READ, _P.POLICY_READ, _P.ADMIN_READ}

BUILT_IN_ROLES: Final[Mapping[str, Role]] = MappingProxyType(
    {
        role.name: role
        for role in (
            Role("viewer", _VIEWER, "sees everything of its tenant and changes nothing", True),
            Role("worker", _WORKER, "takes work items and brings their results", True),
            Role(
                "application",
                frozenset(_APPLICATION),
                "registers workflows, runs cases, does and steers their work",
                True,
            ),
            Role("operator", frozenset(_OPERATOR), "application, and mends what is stuck", True),
            Role("auditor", frozenset(_AUDITOR), "viewer, and reads the audit and the policy", True),
            Role("admin", frozenset(GRANTABLE), "everything, the daemon itself and its backups included", True),
        )
    }
)


def default_document(trust_domain: str, role: str) -> Document:
    """The policy of a daemon without a file: whoever is of its own trust domain has one role, nobody else has any."""
    rule: dict[str, object] = {
        "id": "own-trust-domain",
        "description": "without a policy file, whoever is of the daemon's own trust domain has this role",
        "who": {"trust_domain": trust_domain},
        "effect": "allow",
        "roles": [role],
    }
    return of_value({"version": VERSION, "rules": [rule] if role != "none" and trust_domain else []})


def remarks(document: Document) -> Iterable[tuple[str, str]]:
    """What is allowed but seldom meant: rule and sentence."""
    for rule in document.rules:
        if any((who.claims or who.subject) and not who.issuer and not who.spiffe_id for who in rule.who):
            yield rule.id, "believes the claims of every issuer that is configured; name one"
        wide = any(who == Who() for who in rule.who)
        if rule.effect == "allow" and wide and rule.permissions - BUILT_IN_ROLES["viewer"].permissions:
            yield rule.id, "allows anyone who is identified, other trust domains included, more than to look"
        if rule.effect == "deny" and rule.selectors and Permission.WORK_WRITE in rule.permissions:
            yield rule.id, "denies StreamWorkItems as a whole: what a worker is going to take is in no request"


def schema() -> bytes:
    """The JSON Schema of the document."""
    return package_files.files("knhk_sidecar.identity").joinpath(SCHEMA_FILE).read_bytes()


# ------------------------------------------------------------------------------------------------------------- reading
def parse(text: bytes) -> Document:
    """The policy of a YAML or JSON text. Raises InvalidPolicy with every problem."""
    try:
        value = strict_yaml(text, max_bytes=DOCUMENT_BYTES_MAX)
    except InvalidInput as error:
        raise InvalidPolicy(error.problems) from error
    return of_value(value)


def of_value(value: object) -> Document:
    """The policy of a plain value. Raises InvalidPolicy with every problem."""
    reading = _Reading()
    document = reading.document(value)
    if reading.problems:
        raise InvalidPolicy(reading.problems)
    return document


_RULE_KEYS: Final = (
    "id", "description", "who", "effect", "roles", "permissions", "resources", "tenant", "work_roles", "limits",
    "may_allow_unsound",
)  # fmt: skip
_WHO_KEYS: Final = (
    "spiffe_id", "spiffe_prefix", "trust_domain", "credential", "issuer", "subject", "claims", "anyone",
)  # fmt: skip
_ASSIGNING: Final = ("tenant", "work_roles", "limits", "may_allow_unsound")


class _Reading:
    """Reads one document and collects what is wrong with it; wrong parts are read as if they were absent."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def document(self, value: object) -> Document:
        top = self._mapping(value, "", ("version", "description", "roles", "rules"))
        if value is None or not isinstance(value, Mapping):
            return Document(BUILT_IN_ROLES, (), {})
        if top.get("version") != VERSION or isinstance(top.get("version"), bool):
            self._wrong("version", "must be 1", "begin the document with `version: 1`")
        self._text(top, "description", "")
        roles = self._roles(top.get("roles", {}))
        if "rules" not in top:
            self._wrong("rules", "is missing", "a policy without rules denies everything; write `rules: []` for that")
        rules: list[Rule] = []
        known: dict[str, int] = {}
        for index, each in enumerate(self._list(top.get("rules", []), "rules", RULES_MAX)):
            rule = self._rule(each, f"rules[{index}]", roles)
            if rule.id and rule.id in known:
                self._wrong(f"rules[{index}].id", f"{rule.id!r} is the id of rules[{known[rule.id]}] too", "rename one")
            known.setdefault(rule.id, index)
            rules.append(rule)
        return Document(MappingProxyType(roles), tuple(rules), cast("Mapping[str, object]", value))

    # --------------------------------------------------------------------------------------------------------- roles
    def _roles(self, value: object) -> dict[str, Role]:
        given = self._mapping(value, "roles", None)
        if len(given) > ROLES_MAX:
            self._wrong("roles", f"has {len(given)} roles", f"at most {ROLES_MAX}")
        own: dict[str, Mapping[str, object]] = {}
        for name, each in given.items():
            path = f"roles.{name}"
            if name in BUILT_IN_ROLES:
                self._wrong(path, "is a built-in role", "give yours another name and include it")
            elif self._is_name(name, path):
                own[name] = self._mapping(each, path, ("description", "includes", "permissions"))
        roles = dict(BUILT_IN_ROLES)
        for name in own:
            self._role(name, own, roles, ())
        return roles

    def _role(
        self, name: str, own: Mapping[str, Mapping[str, object]], roles: dict[str, Role], above: tuple[str, ...]
    ) -> frozenset[Permission]:
        """A role's permissions, those of the roles that it includes among them."""
        if name in roles:
            return roles[name].permissions
        path, given = f"roles.{name}", own[name]
        if name in above:
            self._wrong(f"{path}.includes", "includes itself", " -> ".join((*above[above.index(name) :], name)))
            return frozenset()
        found = set(self._permissions(given.get("permissions", []), f"{path}.permissions"))
        for index, each in enumerate(self._list(given.get("includes", []), f"{path}.includes")):
            if isinstance(each, str) and (each in own or each in roles):
                found |= self._role(each, own, roles, (*above, name))
            else:
                self._unknown(f"{path}.includes[{index}]", each, "role", (*own, *BUILT_IN_ROLES))
        if not found and not above:
            self._wrong(path, "has no permissions", "give it `permissions` or `includes`")
        roles[name] = Role(name, frozenset(found), self._text(given, "description", path))
        return roles[name].permissions

    def _permissions(self, value: object, path: str) -> Iterable[Permission]:
        for index, each in enumerate(self._list(value, path)):
            where = f"{path}[{index}]"
            if each == Permission.HEALTH.value:
                self._wrong(where, "health is everybody's, no rule changes that", "remove it")
            elif each == "*":
                yield from GRANTABLE
            elif isinstance(each, str) and each.endswith(".*"):
                found = [permission for permission in GRANTABLE if permission.value.startswith(each[:-1])]
                if not found:
                    self._unknown(where, each, "permission", [f"{one.partition('.')[0]}.*" for one in _BY_VALUE])
                yield from found
            elif isinstance(each, str) and each in _BY_VALUE:
                yield _BY_VALUE[each]
            else:
                self._unknown(where, each, "permission", _BY_VALUE)

    # --------------------------------------------------------------------------------------------------------- rules
    def _rule(self, value: object, path: str, roles: Mapping[str, Role]) -> Rule:
        given = self._mapping(value, path, _RULE_KEYS)
        name = given.get("id", "")
        if "id" not in given:
            self._wrong(f"{path}.id", "is missing", "denials are explained by it")
        elif not self._is_name(name, f"{path}.id"):
            name = ""
        effect = given.get("effect")
        if effect not in ("allow", "deny"):
            self._wrong(f"{path}.effect", f"must be allow or deny, not {_shown(effect)}", "write `effect: allow`")
        named: list[str] = []
        permissions = set(self._permissions(given.get("permissions", []), f"{path}.permissions"))
        for index, each in enumerate(self._list(given.get("roles", []), f"{path}.roles")):
            if isinstance(each, str) and each in roles:
                named.append(each)
                permissions |= roles[each].permissions
            else:
                self._unknown(f"{path}.roles[{index}]", each, "role", roles)
        selectors = (
            self._selectors(given["resources"], f"{path}.resources", permissions) if "resources" in given else ()
        )
        if effect == "deny":
            for key in _ASSIGNING:
                if key in given:
                    self._wrong(f"{path}.{key}", "is given to nobody by a rule that denies", "put it on an allow rule")
            if "roles" not in given and "permissions" not in given:
                self._wrong(path, "denies nothing", 'name roles or permissions; `permissions: ["*"]` denies everything')
        elif not any(key in given for key in ("roles", "permissions", *_ASSIGNING)):
            self._wrong(path, "allows nothing and gives nothing", "name roles or permissions")
        return Rule(
            id=cast(str, name),
            who=self._whom(given, path),
            effect=cast(Effect, effect),
            roles=tuple(named),
            permissions=frozenset(permissions),
            selectors=selectors,
            tenant=self._tenant(given["tenant"], f"{path}.tenant") if "tenant" in given else None,
            work_roles=self._work_roles(given.get("work_roles", []), f"{path}.work_roles"),
            limits=self._limits(given["limits"], f"{path}.limits") if "limits" in given else None,
            may_allow_unsound=self._flag(given, "may_allow_unsound", path),
            description=self._text(given, "description", path),
        )

    def _whom(self, given: Mapping[str, object], path: str) -> tuple[Who, ...]:
        if "who" not in given:
            self._wrong(f"{path}.who", "is missing", "for example `who: {spiffe_id: spiffe://example.org/app}`")
            return ()
        value, where = given["who"], f"{path}.who"
        if not isinstance(value, list):
            return (self._who(value, where),)
        if not value:
            self._wrong(where, "is an empty list", "name somebody, or `{anyone: true}`")
        return tuple(self._who(each, f"{where}[{index}]") for index, each in enumerate(self._list(value, where)))

    def _who(self, value: object, path: str) -> Who:
        given = self._mapping(value, path, _WHO_KEYS)
        if isinstance(value, Mapping) and not given:
            self._wrong(path, "names nobody", "name somebody, or `{anyone: true}` for whoever is identified")
        if "anyone" in given and (given["anyone"] is not True or len(given) > 1):
            self._wrong(f"{path}.anyone", "must be true and stand alone", "remove it, or remove the rest")
        credential = given.get("credential")
        if "credential" in given and credential not in ("certificate", "token"):
            self._wrong(f"{path}.credential", f"must be certificate or token, not {_shown(credential)}", "choose one")
        return Who(
            spiffe_id=self._checked(given, "spiffe_id", path, _spiffe_id, "spiffe://example.org/ns/shop/sa/web"),
            spiffe_prefix=self._checked(given, "spiffe_prefix", path, _spiffe_prefix, "spiffe://example.org/ns/shop"),
            trust_domain=self._checked(given, "trust_domain", path, _trust_domain, "example.org"),
            credential=cast("Credential | None", credential),
            issuer=self._text(given, "issuer", path),
            subject=self._text(given, "subject", path),
            claims=MappingProxyType(self._claims(given.get("claims", {}), f"{path}.claims")),
        )

    def _claims(self, value: object, path: str) -> dict[str, tuple[str, ...]]:
        given = self._mapping(value, path, None)
        found: dict[str, tuple[str, ...]] = {}
        for name, wanted in given.items():
            several = wanted if isinstance(wanted, list) else [wanted]
            if not several or not all(isinstance(each, str | bool | int) for each in several):
                self._wrong(f"{path}.{name}", "must be a text or a list of texts", "for example `groups: ops`")
                continue
            found[name] = tuple(claim_text(each) for each in several)
        return found

    def _tenant(self, value: object, path: str) -> str | Derived | None:
        if isinstance(value, Mapping):
            return self._derived(value, path)
        if not isinstance(value, str) or not is_tenant(value):
            self._wrong(path, f"{_shown(value)} is no name of a tenant", _NAME_HINT)
            return None
        return value

    def _work_roles(self, value: object, path: str) -> tuple[str | Derived, ...]:
        found: list[str | Derived] = []
        for index, each in enumerate(self._list(value, path)):
            where = f"{path}[{index}]"
            if isinstance(each, Mapping):
                derived = self._derived(each, where)
                found += [derived] if derived is not None else []
            elif isinstance(each, str) and _is_plain(each, 256):
                found.append(each)
            else:
                self._wrong(
                    where, f"{_shown(each)} is no role of a task", "write it as in the workflow's required_roles"
                )
        return tuple(found)

    def _derived(self, value: object, path: str) -> Derived | None:
        given = self._mapping(value, path, ("claim", "segment"))
        claim, segment = given.get("claim", ""), given.get("segment", 0)
        if len(given) == 1 and isinstance(claim, str) and isinstance(segment, int) and not isinstance(segment, bool):
            if claim and _is_plain(claim, TEXT_CHARS_MAX):
                return Derived(claim=claim)
            if 1 <= segment <= 32:
                return Derived(segment=segment)
        self._wrong(
            path, "must be {claim: NAME} or {segment: 1 to 32}", "for example `{segment: 2}` of spiffe://d/ns/x"
        )
        return None

    def _limits(self, value: object, path: str) -> Rate | None:
        given = self._mapping(value, path, ("requests_per_second", "burst"))
        rate, burst = given.get("requests_per_second"), given.get("burst")
        fine = True
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= RATE_MAX:
            self._wrong(f"{path}.requests_per_second", f"must be a number above 0, at most {RATE_MAX:.0f}", "e.g. 100")
            fine = False
        if "burst" not in given and fine:
            burst = max(1, round(cast(float, rate)))
        if isinstance(burst, bool) or not isinstance(burst, int) or not 1 <= burst <= RATE_MAX:
            self._wrong(f"{path}.burst", f"must be a whole number from 1 to {RATE_MAX:.0f}", "e.g. 200")
            fine = False
        return Rate(float(cast(float, rate)), cast(int, burst)) if fine else None

    def _selectors(self, value: object, path: str, permissions: Iterable[Permission]) -> tuple[Selector, ...]:
        given = self._mapping(value, path, [kind.value for kind in Kind])
        if isinstance(value, Mapping) and not value:
            self._wrong(path, "is empty", "remove it, or name workflows, cases or patterns")
        kinds = [kind for kind in Kind if kind.value in given]
        asked = frozenset(permissions)
        if kinds and asked and not asked.intersection(*(ABOUT[kind] for kind in kinds)):
            told = " and ".join(kind.value for kind in kinds)
            self._wrong(path, f"none of the rule's permissions is about {told}", "the rule would have no effect")
        return tuple(self._selector(kind, given[kind.value], f"{path}.{kind.value}") for kind in kinds)

    def _selector(self, kind: Kind, value: object, path: str) -> Selector:
        exact: set[str | int] = set()
        prefixes: list[str] = []
        listed = self._list(value, path)
        if isinstance(value, list) and not value:
            self._wrong(path, "is an empty list", "name something, or remove it")
        for index, each in enumerate(listed):
            where = f"{path}[{index}]"
            if kind is Kind.PATTERN:
                exact |= self._pattern_numbers(each, where)
            elif not isinstance(each, str) or not _is_plain(each, 256):
                self._wrong(where, f"{_shown(each)} is no id", "write an id, or a beginning and a star: order-*")
            elif "*" in each[:-1]:
                self._wrong(where, f"{each!r} has a star inside", "a star stands at the end only: order-*")
            elif each.endswith("*"):
                prefixes.append(each[:-1])
            else:
                exact.add(each)
        return Selector(kind, frozenset(exact), tuple(prefixes))

    def _pattern_numbers(self, value: object, path: str) -> set[str | int]:
        found = _PATTERNS.fullmatch(str(value)) if isinstance(value, int | str) else None
        if found is not None:
            low = int(found["low"])
            high = int(found["high"] or low)
            if 1 <= low <= high <= PATTERN_MAX:
                return set(range(low, high + 1))
        self._wrong(path, f"{_shown(value)} is no pattern", f"1 to {PATTERN_MAX}, or a range such as 1-5")
        return set()

    # -------------------------------------------------------------------------------------------------------- pieces
    def _mapping(self, value: object, path: str, keys: Sequence[str] | None) -> Mapping[str, object]:
        """The members that are known; `keys` None: all."""
        if not isinstance(value, Mapping):
            self._wrong(path, f"must be a mapping, not {_shown(value)}", "`name: value` lines")
            return {}
        if keys is None:
            return value
        for name in value:
            if name not in keys:
                self._unknown(f"{path}.{name}" if path else str(name), name, "member", keys)
        return {name: each for name, each in value.items() if name in keys}

    def _list(self, value: object, path: str, most: int = NAMES_MAX) -> Sequence[object]:
        if not isinstance(value, list):
            self._wrong(path, f"must be a list, not {_shown(value)}", "`- value` lines, or [a, b]")
            return ()
        if len(value) > most:
            self._wrong(path, f"has {len(value)} elements", f"at most {most}")
            return ()
        return value

    def _text(self, given: Mapping[str, object], key: str, path: str) -> str:
        value = given.get(key, "")
        if key in given and (not isinstance(value, str) or not value or not _is_plain(value, TEXT_CHARS_MAX)):
            where = f"{path}.{key}" if path else key
            self._wrong(where, f"must be a text, not {_shown(value)}", f"1 to {TEXT_CHARS_MAX} printable characters")
            return ""
        return cast(str, value)

    def _checked(
        self, given: Mapping[str, object], key: str, path: str, check: Callable[[str], str], example: str
    ) -> str:
        text = self._text(given, key, path)
        if not text:
            return ""
        try:
            return check(text)
        except InvalidSpiffeId as error:
            self._wrong(f"{path}.{key}", f"{_shown(text)}: {error}", f"for example {example}")
            return ""

    def _flag(self, given: Mapping[str, object], key: str, path: str) -> bool | None:
        value = given.get(key)
        if key in given and not isinstance(value, bool):
            self._wrong(f"{path}.{key}", f"must be true or false, not {_shown(value)}", "")
            return None
        return cast("bool | None", value)

    def _is_name(self, value: object, path: str) -> bool:
        if isinstance(value, str) and len(value) <= NAME_CHARS_MAX and _NAME.fullmatch(value):
            return True
        self._wrong(path, f"{_shown(value)} is no name", _NAME_HINT)
        return False

    def _unknown(self, path: str, value: object, what: str, known: Iterable[str]) -> None:
        close = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(dict.fromkeys(known))}"
        self._wrong(path, f"{_shown(value)} is no {what}", hint)

    def _wrong(self, path: str, message: str, hint: str) -> None:
        self.problems.append(Problem(path, "policy", message, hint=hint))


def claim_text(value: object) -> str:
    """A claim's value as rules spell it."""
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool | int) else ""


def _is_plain(text: str, most: int) -> bool:
    return len(text) <= most and _PRINTABLE.fullmatch(text) is not None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _spiffe_id(text: str) -> str:
    return str(SpiffeId.parse(text))


def _spiffe_prefix(text: str) -> str:
    """As an id: a prefix without a path is the trust domain, for which there is another member."""
    try:
        return str(SpiffeId.parse(text.removesuffix("/")))
    except InvalidSpiffeId as error:
        raise InvalidSpiffeId(
            f"{error}; a whole trust domain is `trust_domain`" if "path" in str(error) else str(error)
        ) from None


def _trust_domain(text: str) -> str:
    return TrustDomain.parse(text).name
