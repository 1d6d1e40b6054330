"""The policy in force: a file that is followed, or the one that stands in without a file.

A file that was changed counts once it has been the same for two looks: half of one, as a slow editor or copier leaves
it, could be a valid policy without its last denials. What cannot be used is told, and the policy before it stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from knhk_sidecar import files
from knhk_sidecar.identity.policy import Policy
from knhk_sidecar.identity.policy_document import (
    DOCUMENT_BYTES_MAX,
    InvalidPolicy,
    default_document,
    parse,
)
from knhk_sidecar.identity.principal import Kind, Principal
from knhk_workflow import Problem

LOOK_INTERVAL: Final = 0.5  # s; a change is in force after two looks, and one stat costs nothing
STAYS: Final = "the previous policy stays in force"
PROBLEMS_TOLD: Final = 10  # in one line; the log has all of them

_log = structlog.get_logger(__name__)


class Policies:
    """Which policy is in force now. Only the event loop changes it."""

    def __init__(self, policy: Policy, path: str = "", unjudged: Iterable[Kind] = ("dev",)) -> None:
        """`path` is the file that `policy` was read from; empty: there is none."""
        self.current = policy
        self.path = path
        self.problem = ""
        """Why the file's present content is not in force; empty while it is. It quotes the file: for those who may read
        the policy."""
        self.trouble = ""
        """The same without a word of the file, for everybody."""
        self.changed: list[Callable[[], None]] = []
        """Called after another policy has come into force."""
        self._unjudged = frozenset(unjudged)
        self._stamp = files.stamp(path)

    @classmethod
    def of_file(cls, path: str) -> Policies:
        """The policy of a file. Raises InvalidPolicy."""
        before = files.stamp(path)
        unjudged: tuple[Kind, ...] = ("dev",)
        found = cls(read(path), path, unjudged)
        found._stamp = before  # a change while it was read is found at the next look
        return found

    @classmethod
    def without_file(cls, trust_domain: str, role: str) -> Policies:
        """Callers of one trust domain have one role (`none`: no right), others none. Local callers may do everything:
        they exist only where authentication is switched off."""
        unjudged: tuple[Kind, ...] = ("dev", "local")
        document = default_document(trust_domain, role)
        return cls(Policy(document, origin="built-in", unjudged=frozenset(unjudged)), unjudged=unjudged)

    @classmethod
    def developer(cls) -> Policies:
        """Nobody has any right but developers and local callers, who have all."""
        return cls.without_file("", "none")

    def decide(self, caller: Principal) -> Principal:
        """The caller as the policy in force sees it."""
        return self.current.decide(caller)

    def seen(self, name: str) -> Principal | None:
        """The newest caller of this name, as it was identified: with the claims of its token."""
        return next((caller for caller in reversed(self.current.known) if caller.name == name), None)

    def adopt(self, policy: Policy) -> None:
        """From now on this counts, for new calls and for open streams."""
        self.current = policy
        self.problem = self.trouble = ""
        _log.info("policy_replaced", origin=policy.origin, rules=len(policy.document.rules), digest=policy.digest[:16])
        for tell in self.changed:
            tell()

    async def follow(self, interval: float = LOOK_INTERVAL) -> None:
        """Keeps up with the file, a look every `interval` seconds, until cancelled."""
        fresh: files.Stamp | None = None
        while self.path:
            await asyncio.sleep(interval)
            stamp = await asyncio.to_thread(files.stamp, self.path)
            if stamp == self._stamp:
                fresh = None
            elif stamp != fresh:
                fresh = stamp
            else:
                self._stamp, fresh = stamp, None
                await self._take()

    async def _take(self) -> None:
        try:
            self.adopt(await asyncio.to_thread(read, self.path, self._unjudged))
        except InvalidPolicy as error:
            self._refuse(error.problems)
        except Exception as error:  # noqa: BLE001  # whoever stops looking never sees the file that mends it
            self._refuse([Problem("", "policy", f"cannot be used: {error!r}")])

    def _refuse(self, problems: Sequence[Problem]) -> None:
        told = [str(each) for each in problems]
        several = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        self.trouble = f"{self.path} is refused: it has {several}, which the log and `knhk policy show` tell"
        rest = f"; and {len(told) - PROBLEMS_TOLD} more" if len(told) > PROBLEMS_TOLD else ""
        self.problem = f"{self.path} is refused: {'; '.join(told[:PROBLEMS_TOLD])}{rest}"
        _log.error("policy_refused", path=self.path, problems=told, consequence=STAYS)


def read(path: str, unjudged: frozenset[Kind] = frozenset({"dev"})) -> Policy:
    """The policy of a file, compiled. Raises InvalidPolicy."""
    try:
        with open(path, "rb") as stream:
            text = stream.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidPolicy([Problem("", "policy", f"{path} cannot be read: {error.strerror}")]) from error
    return Policy(parse(text), origin=path, unjudged=unjudged)
