"""Configuration of the service-level features. Every field has its unit in its name and its reason beside it."""

from __future__ import annotations

from enum import Enum

import msgspec


class Environment(Enum):
    """Where a workflow is promoted to."""

    DEVELOPMENT = "Development"
    STAGING = "Staging"
    PRODUCTION = "Production"


class SloConfig(msgspec.Struct, frozen=True):
    """Limits of the three runtime classes, as 99th percentiles over a sliding window."""

    r1_p99_max_ns: float = 2.0  # hot: one routing decision of patterns 1-5, amortised over a batch
    w1_p99_max_ms: float = 1.0  # warm: one engine step in memory
    c1_p99_max_ms: float = 500.0  # cold: one durable commit
    window_size_seconds: int = 60


class PromotionConfig(msgspec.Struct, frozen=True):
    """The gate before registration and execution."""

    environment: Environment = Environment.DEVELOPMENT
    feature_flags: tuple[str, ...] = ()
    auto_rollback_enabled: bool = False
    slo_threshold: float = 0.95
    rollback_window_seconds: int = 300


class SpiffeConfig(msgspec.Struct, frozen=True):
    """Identity of the engine's own outgoing calls."""

    socket: str = ""
    trust_domain: str = ""
    spiffe_id: str = ""


class KmsConfig(msgspec.Struct, frozen=True):
    """Where the keys of envelope encryption come from."""

    provider: str = "none"
    key_id: str = ""
    region: str = ""
    rotation_interval_hours: int = 24


class MultiRegionConfig(msgspec.Struct, frozen=True):
    """Replication to peer regions."""

    region: str = ""
    peers: tuple[str, ...] = ()
    quorum_threshold: int = 1


class Fortune5Config(msgspec.Struct, frozen=True):
    """What is switched on: a part that is None is off."""

    spiffe: SpiffeConfig | None = None
    kms: KmsConfig | None = None
    multi_region: MultiRegionConfig | None = None
    slo: SloConfig | None = None
    promotion: PromotionConfig | None = None
