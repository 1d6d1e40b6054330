"""The settings of a connector: a JSON object, checked when it is given and not when a case first needs it.

Every kind has the members of `Settings` and its own beside them; an unknown member is an error. Times are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from knhk_workflow.connectors.allowance import Allowance
from knhk_workflow.connectors.breaker import BreakerRule
from knhk_workflow.connectors.connector import Connector, Delivery
from knhk_workflow.connectors.secrets import Vault
from knhk_workflow.errors import InvalidInput

TIMEOUT_MAX: Final = 3_600.0  # a call that takes longer is a job: let a worker do it
CONCURRENT_MAX: Final = 1_000
_PATH: Final = re.compile(r" - at `\$\.?(.*)`$")


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Connections that are kept."""

    size: int = 16
    """Most connections at once; calls beyond that wait for one."""
    connect_timeout: float = 5.0
    idle_timeout: float = 30.0
    """An unused connection is closed after this; servers close theirs after 60 s or more."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every kind of connector has."""

    delivery: Delivery | None = None
    """What a repeated call means outside; None: what the kind says (see `connector.Delivery`)."""
    timeout: float = 30.0
    """For one call in all."""
    max_concurrent: int = 16
    """Calls at once."""
    pool: PoolSettings = PoolSettings()
    breaker: BreakerRule = BreakerRule()
    allow: tuple[str, ...] = ()
    """Where this connector may go, narrower than the daemon's list; empty: all of that."""


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a connector gets from who runs it."""

    allowance: Allowance
    vault: Vault


Factory = Callable[[bytes, Surroundings], Connector]
"""Makes a connector of its settings, a JSON object. Raises InvalidInput with the path of what is wrong."""

Kinds = Mapping[str, Factory]


def parse(kind: type[S], data: bytes) -> S:
    """Settings of a kind. Raises InvalidInput with the path of what is wrong."""
    try:
        settings = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        text = str(error)
        found = _PATH.search(text)
        path = f"config.{found[1]}" if found else "config"
        raise InvalidInput.field(path, _PATH.sub("", text)) from error
    bounds = {
        "timeout": (settings.timeout, 0.001, TIMEOUT_MAX),
        "max_concurrent": (settings.max_concurrent, 1, CONCURRENT_MAX),
        "pool.size": (settings.pool.size, 1, CONCURRENT_MAX),
        "pool.connect_timeout": (settings.pool.connect_timeout, 0.001, TIMEOUT_MAX),
        "pool.idle_timeout": (settings.pool.idle_timeout, 0.0, TIMEOUT_MAX),
        "breaker.failures": (settings.breaker.failures, 1, 1_000),
        "breaker.window": (settings.breaker.window, 0.001, TIMEOUT_MAX),
        "breaker.pause": (settings.breaker.pause, 0.001, TIMEOUT_MAX),
    }
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise InvalidInput.field(f"config.{name}", f"must be {low:g} to {high:g}, not {value:g}")
    Allowance(settings.allow)
    return settings
