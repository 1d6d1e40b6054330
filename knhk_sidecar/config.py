"""Every setting of the daemon: one frozen record, where its values come from, and what is wrong with them.

Sources, later ones win: defaults < TOML file < environment < command-line flags. In the file a table is a prefix:
`[tls] cert = "x"` is `tls_cert`. In the environment `KGC_SIDECAR_` is the prefix, an empty variable is none, and some
settings have synonyms (`WORKFLOW_STATE_PATH`): two names of one setting with different values are a problem, never a
silent choice.

`load` reports all problems at once as one `ConfigError`; an unknown key is answered with the nearest known one. A
feature that this version does not have cannot be switched on: that is a problem which names it. This is the only module
of the daemon that reads the environment.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final, TypeVar, cast
from urllib.parse import urlsplit

from knhk_sidecar.hosts import is_this_host

PREFIX: Final = "KGC_SIDECAR_"
FILE_VARIABLE: Final = "KGC_SIDECAR_CONFIG_FILE"
CONNECTORS_TABLE: Final = "connectors"
ISSUERS_TABLE: Final = "issuers"
_FILES_OF_TABLES: Final = {CONNECTORS_TABLE: "connectors_file", ISSUERS_TABLE: "issuers_file"}
MASK: Final = "********"
DEV_PLAIN_ADDRESS: Final = "127.0.0.1:50052"
RATE_PER_SECOND: Final = 100.0  # the product's promise; in developer mode there is no limit unless one is set
RATE_BURST_SECONDS: Final = 2.0

Value = bool | int | float | str | tuple[str, ...]
T = TypeVar("T", bound=Value)

# Kubernetes puts variables for every Service into a pod: those of one named kgc-sidecar are no settings.
_SERVICE_LINK = re.compile(r"KGC_SIDECAR_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the settings: which (`name`, as its source spells it), what, and how to mend it."""

    name: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(Exception):
    """The settings cannot be used; `problems` has every reason, `str()` one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known about one setting besides its name, type and default."""

    doc: str
    reason: str
    unit: str = ""
    synonyms: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    address: bool = False
    trust_domain: bool = False
    secret: bool = False
    later: str = ""
    """The feature this switches on when it differs from its default, and which this version does not have."""


def setting(
    default: T,
    doc: str,
    reason: str,
    unit: str = "",
    *,
    synonyms: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    address: bool = False,
    trust_domain: bool = False,
    secret: bool = False,
    later: str = "",
) -> T:
    """A field of `SidecarConfig`: its default, what it means, why the default is what it is, and its bounds."""
    about = Setting(doc, reason, unit, synonyms, at_least, at_most, choices, address, trust_domain, secret, later)
    declared: T = field(default=default, metadata={"setting": about})
    return declared


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarConfig:
    """The daemon's settings. Raises `ConfigError` with every problem when they cannot be used together."""

    # --- workflow engine and its store
    workflow_enabled: bool = setting(True, "run the workflow engine in this process", "it is what the sidecar is for")
    workflow_db_path: str = setting(
        "./workflow_db",
        "directory of the embedded store",
        "beside the process, so that a first try needs no setting",
        synonyms=("WORKFLOW_STATE_PATH",),
    )
    data_dir: str = setting(
        "",
        "directory for everything this daemon keeps; the store is then `workflow_db` inside it",
        "empty: only workflow_db_path counts",
    )
    instance_id: str = setting(
        "",
        "name of this instance in logs and status",
        "empty: the host name, which is the pod's name in Kubernetes",
        synonyms=("WORKFLOW_INSTANCE_ID",),
    )
    batch_size: int = setting(
        1024,
        "most commands in one durable commit",
        "a commit costs one fsync whatever its size; 1,024 commands still encode within a few milliseconds",
        "commands",
        at_least=1,
        at_most=65_536,
    )
    handlers_enabled: bool = setting(
        True,
        "carry out tasks with the functions that installed packages offer as `knhk_sidecar.handlers`",
        "installing one beside the daemon says that it is wanted; without any, nothing is started",
    )
    handlers_credit: int = setting(
        32,
        "work items that those functions may have under way at once",
        "as many as there are threads for plain functions",
        "items",
        at_least=1,
        at_most=10_000,
    )
    verification_steps: int = setting(
        400_000,
        "most steps that verifying one workflow may take before its verdict is `undecided`",
        "about two seconds of one processor; counted, so that the same workflow always gets the same verdict",
        "steps",
        at_least=1_000,
        at_most=1_000_000_000,
    )
    verification_markings: int = setting(
        100_000,
        "most markings that verifying one workflow may keep in memory",
        "at about 300 bytes each; more decides larger unbounded-looking nets",
        "markings",
        at_least=100,
        at_most=10_000_000,
    )
    batch_timeout_ms: float = setting(
        0.0,
        "fixed wait for more commands before a commit; 0: while several are under way, 4 ms at most",
        "0: who calls alone never waits, and many callers share the cost of a commit",
        "ms",
        at_least=0,
        at_most=1_000,
    )

    signing_key_file: str = setting(
        "",
        "PEM file of the Ed25519 key that signs exported cases, mode 0600; empty: SIGNING_KEY beside the store's files",
        "made at the first start; whoever has SIGNING_KEY.pub can prove what this daemon exported",
    )
    retention_completed_hours: float = setting(
        0.0,
        "completed cases are purged this long after their end; 0: never",
        "deleting is the operator's decision; what is purged cannot be brought back without a backup",
        "h",
        at_least=0,
        at_most=1_000_000,
    )
    retention_cancelled_hours: float = setting(
        0.0, "the same for cancelled cases", "as for completed ones", "h", at_least=0, at_most=1_000_000
    )
    retention_failed_hours: float = setting(
        0.0,
        "the same for failed cases",
        "as for completed ones; somebody may still have to look at them",
        "h",
        at_least=0,
        at_most=1_000_000,
    )
    retention_interval_seconds: float = setting(
        600.0,
        "from one look for cases to purge to the next",
        "a look reads every case's head, a million in about a minute, beside the calls",
        "s",
        at_least=1,
        at_most=86_400,
    )

    # --- listeners
    dev: bool = setting(
        False,
        "developer mode: throw-away certificate authority, plain loopback ports with a local identity, reflection",
        "never on by accident: it lets every local process in",
    )
    virtual_time: bool = setting(
        False,
        "developer mode: time can be skipped (`knhk time advance 14d`)",
        "timers of real cases must not fire early",
    )
    address: str = setting(
        "127.0.0.1:50051",
        "gRPC listener, mTLS; `host:port` or a port on loopback; port 0 is any free one",
        "the application is in the same pod or host",
        synonyms=("KGC_SIDECAR_GRPC_ADDRESS",),
        address=True,
    )
    plain_address: str = setting(
        "",
        "gRPC listener without TLS, developer mode and loopback only; empty there is 127.0.0.1:50052",
        "a caller without certificate cannot be told from another",
        address=True,
    )
    http_address: str = setting(
        "127.0.0.1:8080",
        "REST and health listener; empty is off",
        "loopback until a policy says who may come from outside; 8080 is the deployment guide's port",
        address=True,
    )
    metrics_address: str = setting(
        "127.0.0.1:9090", "Prometheus listener; empty is off", "numbers only, but still nobody else's", address=True
    )
    health_address: str = setting(
        "",
        "gRPC listener without TLS for health probes; else only tokens from this host count there; empty is off",
        "kubelet's gRPC probe has no client certificate; /health/ready on http_address is the usual way",
        address=True,
    )
    token_address: str = setting(
        "",
        "gRPC listener with TLS that asks for no client certificate: callers show a bearer token; empty is off",
        "callers with a certificate use address; gRPC cannot leave the choice to the client on one listener",
        address=True,
    )
    reflection_enabled: bool = setting(
        False,
        "gRPC server reflection for callers whom policy allows `reflect`",
        "it tells what is here; developer mode has it on",
    )
    auth_enabled: bool = setting(
        True,
        "callers need an identity; false lets every local process in, on loopback listeners only",
        "default deny",
        synonyms=("WORKFLOW_AUTH_ENABLED",),
    )
    ready_file: str = setting(
        "", "file that is written with the real addresses once the daemon is ready", "empty: none is written"
    )

    # --- identity
    tls_enabled: bool = setting(
        False, "mTLS with key, certificate and authorities from files", "files have to be named first"
    )
    tls_cert: str = setting("", "PEM file: the server's certificate and its chain", "part of tls_enabled")
    tls_key: str = setting("", "PEM file: the server's private key, mode 0600", "part of tls_enabled")
    tls_ca: str = setting("", "PEM file: the authorities that sign clients", "part of tls_enabled")
    spiffe_enabled: bool = setting(
        False,
        "mTLS as the SPIFFE Workload API says; the files of tls_cert, tls_key and tls_ca stand in while it is away",
        "needs an agent on the host",
        synonyms=("WORKFLOW_SPIFFE_ENABLED",),
    )
    spiffe_socket: str = setting(
        "",
        "endpoint of the SPIFFE Workload API, e.g. unix:///run/spire/agent.sock",
        "depends on the agent's installation",
        synonyms=("SPIFFE_ENDPOINT_SOCKET",),
    )
    spiffe_trust_domain: str = setting(
        "",
        "trust domain whose ids may call, with or without spiffe://",
        "empty: that of the server's own certificate; `knhk.dev` in developer mode",
        synonyms=("WORKFLOW_TRUST_DOMAIN",),
        trust_domain=True,
    )
    spiffe_id: str = setting(
        "", "SPIFFE id that this server's certificate must have", "empty: whatever the certificate says"
    )
    spiffe_federates_with: str = setting(
        "",
        "other trust domains whose ids may call, separated by commas; the agent has to have their bundles",
        "empty: nobody from outside",
    )

    issuers_file: str = setting(
        "",
        "TOML file with an `issuers` table: whose bearer tokens count; a TOML settings file with one stands for it",
        "empty: no OpenID Connect issuer is trusted",
    )
    jwt_svid_audiences: tuple[str, ...] = setting(
        (),
        "audiences of JWT-SVIDs that count here, usually this server's SPIFFE id; developer mode has its own",
        "empty: no JWT-SVID counts",
    )
    jwt_svid_bundle: str = setting(
        "",
        "JSON file with the keys of JWT-SVIDs of the own trust domain, where no SPIFFE agent is asked",
        "with spiffe_enabled the agent sends them",
    )
    jwt_svid_lifetime_seconds: int = setting(
        3_600,
        "longest life of a JWT-SVID",
        "agents give minutes; what lives longer was made by somebody else, or by mistake",
        "s",
        at_least=60,
        at_most=86_400,
    )

    # --- policy
    policy_file: str = setting(
        "",
        "YAML or JSON file that says who may do what; followed while running, what cannot be used does not count",
        "empty: policy_default_role decides",
    )
    policy_default_role: str = setting(
        "application",
        "built-in role of every SPIFFE id of the own trust domain as long as there is no policy_file; others have none",
        "what an application beside its sidecar needs; operating the daemon itself has to be given to somebody",
        choices=("none", "viewer", "worker", "application", "operator", "auditor", "admin"),
    )

    # --- limits
    request_timeout_ms: int = setting(
        5_000,
        "deadline of a call whose client set none",
        "a durable step takes milliseconds; beyond five seconds a person has given up",
        "ms",
        at_least=1,
        at_most=3_600_000,
    )
    retry_max_attempts: int = setting(
        3,
        "attempts that `knhk` makes of a call whose connection breaks, where it is safe to repeat it",
        "the connection is back at once, or somebody has to look",
        at_least=1,
        at_most=10,
    )
    max_in_flight: int = setting(
        256,
        "unary calls executed at once",
        "above it waiting costs less than switching",
        "calls",
        at_least=1,
        at_most=65_536,
    )
    max_queued: int = setting(
        512,
        "unary calls that wait for their turn; more are refused with RESOURCE_EXHAUSTED",
        "at 2,000 calls/s a quarter of a second: what waits longer has often expired",
        "calls",
        at_least=0,
        at_most=65_536,
    )
    max_waiting: int = setting(
        1_024,
        "calls that wait for a case to end, which are not counted as in flight",
        "each holds only a few KB",
        "calls",
        at_least=0,
        at_most=65_536,
    )
    max_streams_per_connection: int = setting(
        16,
        "open streams per connection",
        "leaves room for unary calls below max_concurrent_streams",
        "streams",
        at_least=1,
    )
    max_concurrent_streams: int = setting(
        100,
        "HTTP/2 streams per connection",
        "with no limit a rapid reset by one client cancels the calls of others",
        "streams",
        at_least=1,
        at_most=10_000,
    )
    max_message_bytes: int = setting(
        4 * 1024 * 1024,
        "largest message received",
        "case data is at most 2 MB",
        "bytes",
        at_least=1024,
        at_most=64 * 1024 * 1024,
    )
    max_metadata_bytes: int = setting(
        8_192, "largest metadata of a call", "a trace, a token and room", "bytes", at_least=1024, at_most=65_536
    )
    handshake_timeout_ms: int = setting(
        5_000,
        "longest TLS handshake",
        "silent connections would stay open for ever",
        "ms",
        at_least=100,
        at_most=60_000,
    )
    connection_idle_seconds: int = setting(
        900, "idle connections are closed after this", "a client reconnects in a millisecond", "s", at_least=1
    )
    connection_age_seconds: int = setting(
        3_600,
        "connections are closed after this",
        "so that rotated certificates and authorities take effect",
        "s",
        at_least=1,
    )
    connection_age_grace_seconds: int = setting(
        60,
        "time for the calls of a connection that has reached its age",
        "longer than the default deadline",
        "s",
        at_least=1,
    )
    keepalive_seconds: int = setting(
        60, "pings to silent clients", "finds dead peers without waking idle ones often", "s", at_least=1
    )
    keepalive_min_client_seconds: int = setting(
        10, "clients that ping more often are sent away", "the usual client setting is 20 to 30", "s", at_least=1
    )
    drain_seconds: float = setting(
        20.0,
        "time for running calls after SIGTERM",
        "Kubernetes kills after 30; ten are left for the store",
        "s",
        at_least=0,
        at_most=3_600,
    )
    max_stream_messages: int = setting(
        1_000_000,
        "messages that one stream may send; then it is ended with RESOURCE_EXHAUSTED, and the client opens another",
        "hours of a busy worker, while a stream that is only fed cannot go on for ever",
        "messages",
        at_least=1,
    )
    rate_limit_enabled: bool = setting(
        True,
        "limit the requests of each caller, over gRPC and REST together",
        "one caller must not take the sidecar from the others",
        synonyms=("WORKFLOW_RATE_LIMIT_ENABLED",),
    )
    rate_limit_per_second: float = setting(
        0.0,
        "requests per second of a caller whose policy says nothing else; 0: 100, in developer mode no limit",
        "an application that does more by single calls is better served by lists and streams, or is given more",
        "1/s",
        at_least=0,
        at_most=1_000_000_000,
    )
    rate_limit_burst: int = setting(
        0,
        "requests that such a caller may make at once after a pause; 0: those of two seconds",
        "what a start or a batch job sends at once is no attack",
        "requests",
        at_least=0,
        at_most=1_000_000_000,
    )
    memory_limit_mb: int = setting(
        0,
        "memory that this process may use; 0: what its cgroup (container) or `ulimit -v` allows, else unlimited",
        "the limit that would kill it",
        "MiB",
        at_least=0,
    )
    memory_soft_percent: float = setting(
        85.0,
        "from this share of the limit on new work is refused with RESOURCE_EXHAUSTED; what exists goes on",
        "work in progress, a commit and a compaction fit into the rest",
        "%",
        at_least=1,
        at_most=100,
    )
    disk_low_mb: int = setting(
        512,
        "health is degraded while the store's volume has less free space; the store refuses writes below 64 MiB",
        "time to act: a busy sidecar writes 1 GB in a few minutes",
        "MiB",
        at_least=0,
    )

    # --- connectors
    connectors_file: str = setting(
        "",
        "TOML or YAML file with a `connectors` table; a TOML settings file with one stands for it",
        "empty: connectors are put by calls only",
    )
    connector_allow: tuple[str, ...] = setting(
        (),
        "where connectors may call: patterns scheme://host:port, with *.name for hosts and * for ports",
        "nothing: a workflow must not reach whatever this host can reach",
    )
    connector_networks: tuple[str, ...] = setting(
        (),
        "networks that are not public and may be called all the same, such as 10.0.0.0/8 or 127.0.0.0/8",
        "nothing: loopback, private networks and the metadata services of clouds are the usual targets of abuse",
    )
    connector_secrets_dir: str = setting(
        "",
        "directory of the secrets that connectors may name which are put by calls",
        "empty: they may name variables that begin with KNHK_SECRET_ only",
    )

    # --- telemetry
    log_level: str = setting(
        "info",
        "least level that is logged",
        "a line per failed call, none per good one",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = setting(
        "json", "one JSON object per line, or text for people", "machines read it", choices=("json", "console")
    )
    otel_endpoint: str = setting(
        "",
        "OTLP endpoint for traces and metrics",
        "",
        synonyms=("WORKFLOW_OTEL_ENDPOINT",),
        later="OpenTelemetry export",
    )
    audit_enabled: bool = setting(
        True,
        "record calls that change nothing too (reads, denials), and push checkpoints of the audit",
        "who changed what is recorded in any case, by the commit of the change",
        synonyms=("WORKFLOW_AUDIT_ENABLED",),
    )
    audit_reads: bool = setting(
        True,
        "record good reads; false: of calls that change nothing only what was refused",
        "who looked at what is asked sooner or later; like reads within a second are one entry",
    )
    audit_checkpoint_seconds: float = setting(
        10.0,
        "from one signed checkpoint of the audit to the next, when there is something new",
        "what a roll-back could hide is at most this long",
        "s",
        at_least=0.1,
        at_most=86_400,
    )
    audit_checkpoint_directory: str = setting(
        "",
        "directory that checkpoints are pushed to, as one file per store: a volume of another host",
        "empty: none; whoever has the host could roll the log back unnoticed",
    )
    audit_checkpoint_url: str = setting(
        "", "https address that checkpoints are posted to, as text; http only on this host", "empty: none"
    )

    # --- key management
    kms_provider: str = setting(
        "none",
        "key service that wraps the keys of case data",
        "none: the volume's own encryption",
        choices=("none", "aws", "azure", "vault"),
        later="encryption of case data",
    )
    kms_region: str = setting("", "region of the key service", "depends on the account")
    kms_key_id: str = setting("", "id of the wrapping key", "depends on the account")
    kms_vault_url: str = setting("", "address of Vault", "depends on the installation")
    kms_vault_mount: str = setting("transit", "mount of Vault's transit engine", "Vault's own default")
    key_rotation_interval_hours: int = setting(
        24, "longest life of a data key", "a day bounds what one lost key opens", "h", at_least=1, at_most=24
    )

    # --- regions
    region: str = setting("", "region of this instance", "one region has no name", synonyms=("WORKFLOW_REGION",))
    primary_region: str = setting("", "region that decides", "one region has no primary")
    multi_region_enabled: bool = setting(
        False, "several regions", "", synonyms=("WORKFLOW_MULTI_REGION",), later="several regions"
    )
    cross_region_sync_enabled: bool = setting(
        False, "send receipts to peer regions", "", later="synchronisation between regions"
    )
    receipt_sync_endpoints: tuple[str, ...] = setting(
        (), "peers that receive receipts, separated by commas", "none without peers"
    )
    quorum_threshold: int = setting(1, "peers that must have a receipt", "this instance alone", "peers", at_least=1)

    # --- service levels and promotion
    fortune5_enabled: bool = setting(
        False,
        "all of the Fortune 5 features",
        "",
        synonyms=("WORKFLOW_FORTUNE5_ENABLED",),
        later="the Fortune 5 features",
    )
    slo_enabled: bool = setting(False, "measure service levels and act on them", "", later="service level objectives")
    slo_r1_p99_max_ns: int = setting(2, "p99 of a routing decision in a batch", "the product's goal", "ns", at_least=1)
    slo_w1_p99_max_ms: int = setting(1, "p99 of an engine step in memory", "the product's goal", "ms", at_least=1)
    slo_c1_p99_max_ms: int = setting(500, "p99 of a durable step", "the product's goal", "ms", at_least=1)
    slo_admission_strategy: str = setting(
        "strict", "what a breach does to new work", "refusing is safer", choices=("strict", "degrade")
    )
    slo_threshold: float = setting(
        0.95, "share of the window that must comply", "one bad burst in twenty", at_least=0, at_most=1
    )
    promotion_enabled: bool = setting(
        False, "gate registration and execution by environment", "", later="the promotion gate"
    )
    promotion_environment: str = setting(
        "development", "environment of this instance", "never gated", choices=("development", "staging", "production")
    )
    promotion_traffic_percent: float = setting(
        100.0, "share of cases that take new versions", "no canary", "%", at_least=0, at_most=100
    )
    auto_rollback_enabled: bool = setting(
        True, "roll back by itself after a breach", "acts only when the promotion gate does"
    )

    def __post_init__(self) -> None:
        problems = [*_field_problems(self), *_combination_problems(self)]
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> SidecarConfig:
        """Defaults, the file that `KGC_SIDECAR_CONFIG_FILE` names, the environment (the process's unless given)."""
        return load(environ=environ).config

    @classmethod
    def from_file(cls, path: str | Path, environ: Mapping[str, str] | None = None) -> SidecarConfig:
        """Defaults, then this TOML file, then `environ` when given; the process's environment is not read."""
        return load(file=str(path), environ={} if environ is None else environ).config

    @property
    def rate_per_second(self) -> float:
        """Requests per second of a caller whose policy says nothing else; 0 = callers are not counted."""
        if not self.rate_limit_enabled:
            return 0.0
        return self.rate_limit_per_second or (0.0 if self.dev else RATE_PER_SECOND)

    @property
    def rate_burst(self) -> int:
        """How many of them may come at once."""
        return self.rate_limit_burst or max(1, int(self.rate_per_second * RATE_BURST_SECONDS))

    @property
    def store_path(self) -> str:
        """Where the store really is."""
        if self.data_dir and self.workflow_db_path == _DEFAULTS["workflow_db_path"]:
            return str(Path(self.data_dir) / "workflow_db")
        return self.workflow_db_path

    @property
    def federated_domains(self) -> tuple[str, ...]:
        """The names in `spiffe_federates_with`."""
        return tuple(name.strip() for name in self.spiffe_federates_with.split(",") if name.strip())

    @property
    def plain_listener(self) -> str:
        """Where the plain gRPC listener really is: developer mode always has one."""
        return (self.plain_address or DEV_PLAIN_ADDRESS) if self.dev else ""

    @property
    def dev_directory(self) -> str:
        """Where developer mode keeps its certificates and `daemon.json`, from the root: whoever reads the latter may be
        in another directory, and the address of a socket (SPIFFE_ENDPOINT_SOCKET) has to be."""
        return os.path.abspath(Path(self.data_dir) / "dev" if self.data_dir else f"{self.workflow_db_path}-dev")


@dataclass(frozen=True, slots=True)
class SettingLine:
    """One setting as `knhk config show` prints it; `value` is masked where it is secret."""

    name: str
    value: str
    origin: str
    unit: str
    doc: str
    default: str
    secret: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each came from: `default`, `file PATH`, `env NAME` or `flag --name`."""

    config: SidecarConfig
    origins: Mapping[str, str]

    def describe(self) -> tuple[SettingLine, ...]:
        """Every setting in order of declaration."""
        return tuple(
            SettingLine(
                name=name,
                value=_shown(getattr(self.config, name), about),
                origin=self.origins.get(name, "default"),
                unit=about.unit,
                doc=about.doc,
                default=_shown(_DEFAULTS[name], about),
                secret=about.secret,
            )
            for name, about in SETTINGS.items()
        )


def load(
    flags: Mapping[str, Value | None] | None = None, environ: Mapping[str, str] | None = None, file: str | None = None
) -> Loaded:
    """The settings of this process. `flags` are field names (None = not given); `environ` is the process's when None.

    Raises `ConfigError` with everything that is wrong in any source.
    """
    environment = os.environ if environ is None else environ
    problems: list[Problem] = []
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}
    path = file or environment.get(FILE_VARIABLE, "")
    layers = (
        _from_file(path, problems) if path else (),
        _from_environment(environment, problems),
        _from_flags(flags or {}, problems),
    )
    for layer in layers:
        for name, value, origin in layer:
            values[name], origins[name] = value, origin
    try:
        config = SidecarConfig(**values)  # type: ignore[arg-type]  # each value was parsed to its field's type
    except ConfigError as error:
        spelled = {name: origin.removeprefix("env ").removeprefix("flag ") for name, origin in origins.items()}
        problems += [Problem(spelled.get(p.name, p.name), p.message, p.hint) for p in error.problems]
    if problems:
        raise ConfigError(problems)
    return Loaded(config, origins)


def variables() -> Mapping[str, str]:
    """The environment that connectors' secrets may name."""
    return os.environ


def split_address(address: str) -> tuple[str, int]:
    """Host (default 127.0.0.1) and port of `host:port`, `[v6]:port`, `:port` or `port`. ValueError says why not."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("must be host:port or a port, with a port of 0 to 65535")
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise ValueError(f"{host!r} is not a host")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether a listener there is reached from this host (or pod) only. Raises ValueError as `split_address`."""
    return is_this_host(split_address(address)[0])


# ------------------------------------------------------------------------------------------------------------- sources
_Layer = Iterable[tuple[str, Value, str]]


def _from_file(path: str, problems: list[Problem]) -> _Layer:
    import tomllib  # noqa: PLC0415 - only a daemon with a file pays for it

    try:
        with open(path, "rb") as stream:
            document = tomllib.load(stream)
    except OSError as error:
        problems.append(Problem(path, f"cannot be read: {error.strerror}"))
        return ()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(Problem(path, f"is not TOML: {error}"))
        return ()
    found: list[tuple[str, Value, str]] = []
    _walk(document, "", path, found, problems)
    return found


def _walk(
    table: Mapping[str, object], prefix: str, path: str, found: list[tuple[str, Value, str]], problems: list[Problem]
) -> None:
    for key, value in table.items():
        name = f"{prefix}_{key}" if prefix else key
        if name in _FILES_OF_TABLES and isinstance(value, Mapping):
            found.append((_FILES_OF_TABLES[name], path, f"file {path}"))
        elif name in SETTINGS:
            parsed = _parse(name, value, f"{path}: {name}", problems)
            if parsed is not None:
                found.append((name, parsed, f"file {path}"))
        elif isinstance(value, Mapping):
            _walk(value, name, path, found, problems)
        else:
            problems.append(Problem(f"{path}: {name}", "is not a setting", _nearest(name, SETTINGS)))


def _from_environment(environ: Mapping[str, str], problems: list[Problem]) -> _Layer:
    given: dict[str, tuple[Value, str]] = {}
    for name, about in SETTINGS.items():
        for variable in (PREFIX + name.upper(), *about.synonyms):
            text = environ.get(variable, "").strip()
            if text and not (_SERVICE_LINK.fullmatch(variable) and _SERVICE_LINK_VALUE.match(text)):
                value = _parse(name, text, variable, problems)
                if value is not None:
                    _agree(given, name, value, variable, problems)
    rest = _http_from_guide(environ, problems)
    if rest is not None:
        _agree(given, "http_address", *rest, problems)
    known = (
        {PREFIX + name.upper() for name in SETTINGS}
        | {v for s in SETTINGS.values() for v in s.synonyms}
        | {FILE_VARIABLE}
    )
    problems.extend(
        Problem(variable, "is not a setting", _nearest(variable, known))
        for variable in sorted(environ)
        if variable.startswith(PREFIX) and variable not in known and not _SERVICE_LINK.fullmatch(variable)
    )
    return ((name, value, f"env {variable}") for name, (value, variable) in given.items())


def _agree(
    given: dict[str, tuple[Value, str]], name: str, value: Value, variable: str, problems: list[Problem]
) -> None:
    if name in given and given[name][0] != value:
        before, other = given[name]
        problems.append(
            Problem(f"{other} and {variable}", f"set {name} to different values, {before!r} and {value!r}", "keep one")
        )
        return
    given.setdefault(name, (value, variable))


def _http_from_guide(environ: Mapping[str, str], problems: list[Problem]) -> tuple[Value, str] | None:
    """WORKFLOW_API_HOST and WORKFLOW_API_PORT are the two halves of `http_address`."""
    host, port = environ.get("WORKFLOW_API_HOST", "").strip(), environ.get("WORKFLOW_API_PORT", "").strip()
    if _SERVICE_LINK_VALUE.match(port):  # a Service named workflow-api
        port = ""
    if not host and not port:
        return None
    variable = " and ".join(name for name, text in (("WORKFLOW_API_HOST", host), ("WORKFLOW_API_PORT", port)) if text)
    default_host, default_port = split_address(str(_DEFAULTS["http_address"]))
    try:
        number = split_address(port)[1] if port else default_port
    except ValueError:
        problems.append(Problem("WORKFLOW_API_PORT", f"must be a port of 0 to 65535, not {port!r}"))
        return None
    address = _parse("http_address", join_address(host or default_host, number), variable, problems)
    return None if address is None else (address, variable)


def _from_flags(flags: Mapping[str, Value | None], problems: list[Problem]) -> _Layer:
    found: list[tuple[str, Value, str]] = []
    for name, given in flags.items():
        if given is None:
            continue
        flag = "--" + name.replace("_", "-")
        if name not in SETTINGS:
            problems.append(Problem(flag, "is not a setting", _nearest(name, SETTINGS)))
            continue
        value = _parse(name, given, flag, problems)
        if value is not None:
            found.append((name, value, f"flag {flag}"))
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


# ------------------------------------------------------------------------------------------------------------- values
_TRUE = frozenset(("true", "1", "yes", "on"))
_FALSE = frozenset(("false", "0", "no", "off"))
_OFF = frozenset(("", "off", "none"))  # for a listener; a variable cannot be told from an unset one when it is empty


def _parse(name: str, raw: object, where: str, problems: list[Problem]) -> Value | None:
    """`raw` as the field's type, in the field's one spelling; None after a problem was noted."""
    default, about = _DEFAULTS[name], SETTINGS[name]
    try:
        return _converted(raw, default, about)
    except ValueError as error:
        problems.append(Problem(where, str(error)))
        return None


def _converted(raw: object, default: Value, about: Setting) -> Value:
    if isinstance(default, bool):
        if isinstance(raw, bool):
            return raw
        text = str(raw).lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        raise ValueError(f"must be true or false, not {raw!r}")
    if isinstance(default, int | float):
        if isinstance(raw, bool):
            raise ValueError(f"must be a number, not {raw!r}")
        return _number(raw, whole=isinstance(default, int))
    if isinstance(default, tuple):
        parts = raw if isinstance(raw, list | tuple) else str(raw).split(",")
        return tuple(str(part).strip() for part in parts if str(part).strip())
    if isinstance(raw, int) and not isinstance(raw, bool) and about.address:
        raw = str(raw)
    if not isinstance(raw, str):
        raise ValueError(f"must be text, not {raw!r}")
    return _text(raw.strip(), about)


def _number(raw: object, *, whole: bool) -> int | float:
    try:
        return int(str(raw)) if whole else float(str(raw))
    except ValueError:
        raise ValueError(f"must be a {'whole number' if whole else 'number'}, not {raw!r}") from None


def _text(text: str, about: Setting) -> str:
    if about.choices:
        return text.lower()
    if about.trust_domain:
        return text.removeprefix("spiffe://").removesuffix("/")
    if about.address:
        return "" if text in _OFF else join_address(*split_address(text))
    return text


def _shown(value: Value, about: Setting) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    if about.secret and text:
        return MASK
    return _USER_INFO.sub(MASK, text)


# ------------------------------------------------------------------------------------------------------------- checks
def _field_problems(config: SidecarConfig) -> Iterable[Problem]:
    for name, about in SETTINGS.items():
        value: Value = getattr(config, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield from _range_problems(name, value, about)
        elif isinstance(value, str):
            yield from _text_problems(name, value, about)
        if about.later and value != _DEFAULTS[name]:
            yield Problem(
                name,
                f"{about.later} is not available in this version",
                f"leave it at {_shown(_DEFAULTS[name], about)!r}",
            )


def _range_problems(name: str, value: float, about: Setting) -> Iterable[Problem]:
    low, high = about.at_least, about.at_most
    if value != value or (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        yield Problem(name, f"must be {bounds}{' ' + about.unit if about.unit else ''}, not {value}")


def _text_problems(name: str, value: str, about: Setting) -> Iterable[Problem]:
    if about.choices and value not in about.choices:
        yield Problem(name, f"must be one of {', '.join(about.choices)}, not {value!r}", _nearest(value, about.choices))
    if about.trust_domain and value and not _TRUST_DOMAIN.fullmatch(value):
        yield Problem(
            name, f"{value!r} is not a trust domain", "lower case letters, digits, dots, dashes and underscores"
        )
    if about.address and value:
        try:
            split_address(value)
        except ValueError as error:
            yield Problem(name, f"{error}, not {value!r}")


def _combination_problems(config: SidecarConfig) -> Iterable[Problem]:
    files = {"tls_cert": config.tls_cert, "tls_key": config.tls_key, "tls_ca": config.tls_ca}
    if config.tls_enabled:
        missing = [name for name, path in files.items() if not path]
        if missing and not config.dev:
            yield Problem("tls_enabled", f"needs {', '.join(missing)} too", "callers are known by certificates only")
    elif any(files.values()) and not config.spiffe_enabled:
        named = ", ".join(name for name, path in files.items() if path)
        yield Problem(named, "has no effect while tls_enabled is false", "set tls_enabled to true or remove it")
    yield from _spiffe_problems(config)
    yield from _token_problems(config)
    yield from _audit_problems(config)
    if not config.address:
        yield Problem("address", "must not be empty")
    if config.plain_address and not config.dev:
        yield Problem("plain_address", "exists in developer mode only", "use address with tls_enabled")
    if config.virtual_time and not config.dev:
        yield Problem("virtual_time", "exists in developer mode only", "use `knhk dev --virtual-time`")
    yield from _loopback_problems(config)


def _audit_problems(config: SidecarConfig) -> Iterable[Problem]:
    url = config.audit_checkpoint_url
    if url and not _safe_to_post_to(url):
        why = "is no https:// address (http:// only on this host)"
        yield Problem("audit_checkpoint_url", why, "for example https://witness.example.org/log")
    for name in ("audit_checkpoint_directory", "audit_checkpoint_url"):
        if getattr(config, name) and not config.audit_enabled:
            yield Problem(name, "has no effect while audit_enabled is false")


def _safe_to_post_to(url: str) -> bool:
    """Whether nobody on the way can read or change what goes there."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_this_host(host)))


def _spiffe_problems(config: SidecarConfig) -> Iterable[Problem]:
    if not config.spiffe_enabled:
        if config.spiffe_federates_with:
            yield Problem("spiffe_federates_with", "has no effect while spiffe_enabled is false")
        return
    if not config.spiffe_socket:
        yield Problem("spiffe_enabled", "needs spiffe_socket too", "for example unix:///run/spire/agent.sock")
    elif not config.spiffe_socket.startswith(("unix:", "tcp://")):
        yield Problem("spiffe_socket", f"is no endpoint: {config.spiffe_socket!r}", "write unix:///path/of/agent.sock")
    files = (config.tls_cert, config.tls_key, config.tls_ca)
    if any(files) and not all(files):
        mend = "set tls_cert, tls_key and tls_ca, or none of them"
        yield Problem("spiffe_enabled", "has only a part of the files that stand in", mend)


def _token_problems(config: SidecarConfig) -> Iterable[Problem]:
    tls = config.tls_enabled or config.spiffe_enabled or config.dev
    if config.token_address and not tls:
        yield Problem("token_address", "needs TLS: a token is readable on the way otherwise", "set tls_enabled")
    if config.token_address and not (config.issuers_file or config.jwt_svid_audiences or config.dev):
        yield Problem("token_address", "has no effect without tokens", "set issuers_file or jwt_svid_audiences")
    if config.jwt_svid_audiences and not (config.spiffe_enabled or config.jwt_svid_bundle or config.dev):
        yield Problem("jwt_svid_audiences", "needs keys to verify with", "set spiffe_enabled or jwt_svid_bundle")
    if config.jwt_svid_bundle and (config.spiffe_enabled or config.dev):
        yield Problem("jwt_svid_bundle", "has no effect where an agent is asked", "remove it")
    elif config.jwt_svid_bundle and not config.jwt_svid_audiences:
        yield Problem("jwt_svid_bundle", "has no effect without jwt_svid_audiences", "set it, or remove the file")
    elif config.jwt_svid_bundle and not (config.tls_enabled or config.spiffe_trust_domain):
        yield Problem("jwt_svid_bundle", "is of no trust domain", "set spiffe_trust_domain")


def _loopback_problems(config: SidecarConfig) -> Iterable[Problem]:
    """Whoever has no identity must at least be on this host."""
    must: dict[str, str] = {"plain_address": "it has no TLS"}
    if config.dev or not config.auth_enabled:
        why = "developer mode lets every caller in" if config.dev else "auth_enabled is false"
        must["http_address"] = must["health_address"] = must["token_address"] = why
    if not config.dev and not (config.tls_enabled or config.spiffe_enabled):
        must["address"] = "tls_enabled is false, so that no caller can be identified"
        must.setdefault("http_address", must["address"])
    for name, why in must.items():
        address: str = getattr(config, name)
        try:
            outside = bool(address) and not is_loopback(address)
        except ValueError:  # reported as the field's own problem
            continue
        if outside:
            yield Problem(name, f"must be a loopback address, not {address!r}: {why}")


SETTINGS: Final[Mapping[str, Setting]] = {
    declared.name: cast(Setting, declared.metadata["setting"]) for declared in fields(SidecarConfig)
}
_DEFAULTS: Final[Mapping[str, Value]] = {
    declared.name: cast(Value, declared.default) for declared in fields(SidecarConfig)
}
