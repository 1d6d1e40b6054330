"""What policy has decided about a caller: values that the stages look up.

They are made once per caller and policy, and shared by callers to whom the same rules apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from knhk_sidecar.identity.permission import Permission

NO_RULE: Final = ""  # the rule of a denial that follows from there being no rule


class Beginning(str):
    """The set of all ids with this beginning, where a request names a set."""

    __slots__ = ()


class Resource(NamedTuple):
    """One thing that a call is about, as far as the request says so; None: it does not say."""

    workflow: str | None = None
    case: str | None = None
    pattern: int | None = None


class Kind(Enum):
    """What rules can be narrowed to."""

    WORKFLOW = "workflows"
    CASE = "cases"
    PATTERN = "patterns"


@dataclass(frozen=True, slots=True)
class Selector:
    """A set of things of one kind: whole ids, and beginnings of ids. Patterns are numbers."""

    kind: Kind
    exact: frozenset[str | int]
    prefixes: tuple[str, ...] = ()

    def holds(self, resource: Resource) -> bool | None:
        """Whether a thing is in the set; None when the request does not say which it is, or names more."""
        name: str | int | None = resource[_FIELD[self.kind]]
        if name is None:
            return None
        if isinstance(name, Beginning):
            if name.startswith(self.prefixes):
                return True
            within = (*self.prefixes, *(each for each in self.exact if isinstance(each, str)))
            return None if any(each.startswith(name) for each in within) else False
        return name in self.exact or (isinstance(name, str) and name.startswith(self.prefixes))


_FIELD: Final = {Kind.WORKFLOW: 0, Kind.CASE: 1, Kind.PATTERN: 2}

# The permissions whose calls are about things of a kind; a rule that is narrowed to things has no say about others.
ABOUT: Final[Mapping[Kind, frozenset[Permission]]] = {
    Kind.WORKFLOW: frozenset(
        {
            Permission.WORKFLOW_READ, Permission.WORKFLOW_WRITE, Permission.CASE_READ, Permission.CASE_WRITE,
            Permission.CASE_OPERATE, Permission.WORK_READ, Permission.WORK_WRITE, Permission.WORK_OPERATE,
            Permission.SCHEDULE_READ, Permission.SCHEDULE_WRITE,
        }
    ),
    Kind.CASE: frozenset(
        {
            Permission.CASE_READ, Permission.CASE_WRITE, Permission.CASE_OPERATE,
            Permission.WORK_READ, Permission.WORK_WRITE, Permission.WORK_OPERATE,
        }
    ),
    Kind.PATTERN: frozenset({Permission.PATTERN_READ, Permission.PATTERN_EXECUTE}),
}  # fmt: skip


class Narrowed(NamedTuple):
    """A rule that counts for some things only. All of its selectors have to hold."""

    rule: str
    selectors: tuple[Selector, ...]

    def covers(self, resource: Resource) -> bool | None:
        """Whether a thing is one that the rule is about; None when the request does not tell."""
        told: bool | None = True
        for selector in self.selectors:
            held = selector.holds(resource)
            if held is False:
                return False
            told = told and held
        return told


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds for one permission.

    `allowed` and `rule` are final when nothing is narrowed. A narrowed denial counts unless the request shows that it
    is about something else; a narrowed allowance counts when the request shows that it is about what was allowed.
    """

    allowed: bool
    rule: str
    denials: tuple[Narrowed, ...] = ()
    allowances: tuple[Narrowed, ...] = ()
    narrowed: bool = field(init=False)
    """Whether what the request is about has to be looked at."""
    plain: bool = field(init=False)
    """Allowed, whatever the request is about."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "narrowed", bool(self.denials or self.allowances))
        object.__setattr__(self, "plain", self.allowed and not self.narrowed)

    def about(self, resources: tuple[Resource, ...]) -> Verdict:
        """The verdict on a call about these things; it is denied when it is for any of them."""
        if not self.narrowed:
            return self
        rule = self.rule
        for resource in resources or (Resource(),):
            for denial in self.denials:
                if denial.covers(resource) is not False:
                    return _final(False, denial.rule)
            if not self.allowed:
                allowance = next((each for each in self.allowances if each.covers(resource)), None)
                if allowance is None:
                    return DENIED
                rule = allowance.rule
        return _final(True, rule)


@lru_cache(4_096)  # as many rules as a policy usually has at most
def _final(allowed: bool, rule: str) -> Verdict:
    return Verdict(allowed, rule)


DENIED: Final = Verdict(False, NO_RULE)


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests somebody may make: `per_second` in the long run, `burst` of them at once after a pause."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True, eq=False)
class Grants:
    """What a caller may do; a permission that is not here is denied by there being no rule."""

    verdicts: Mapping[Permission | None, Verdict] = field(default_factory=lambda: MappingProxyType({}))
    rules: tuple[str, ...] = ()
    """The rules that apply to the caller, in the policy's order."""
    limits: Rate | None = None
    """Instead of the limits of everybody."""
    may_allow_unsound: bool = True
    """Whether RegisterWorkflow may be told to take an unsound workflow, for who may register at all."""
    unsound_rule: str = NO_RULE
    """Which rule forbids that."""

    def verdict(self, permission: Permission | None) -> Verdict:
        """What holds for a permission; None is the permission of a call that nobody may make."""
        return self.verdicts.get(permission, DENIED)


NOTHING: Final = Grants()
EVERYTHING_RULE: Final = "built-in"
EVERYTHING: Final = Grants(
    MappingProxyType({each: Verdict(True, EVERYTHING_RULE) for each in Permission}), (EVERYTHING_RULE,)
)
