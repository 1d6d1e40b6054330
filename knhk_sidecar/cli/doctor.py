"""`knhk doctor`: what could be wrong here, each finding with the line that mends it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Final, Literal

import click
import structlog
from cryptography import x509
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.connectors import PROBE_SECONDS, all_connectors
from knhk_sidecar.cli.failure import Exit, Failure
from knhk_sidecar.cli.render import console, structured
from knhk_sidecar.cli.session import Session, connected
from knhk_sidecar.config import ConfigError, SidecarConfig, load, split_address
from knhk_sidecar.identity.policy_document import InvalidPolicy, remarks
from knhk_sidecar.identity.policy_source import read as read_policy
from knhk_sidecar.identity.tls import InvalidMaterial, TlsFiles, read_material
from knhk_workflow import StateStore, StoreCorrupt, StoreError, StoreLocked, WorkflowEngine, store_mendings

Verdict = Literal["ok", "warning", "error"]

SPACE_MIN: Final = 64 * 1024 * 1024  # bytes; below it the store refuses writes soon
SPACE_GOOD: Final = 1024 * 1024 * 1024  # bytes; a day of a busy sidecar
EXPIRY_NEAR: Final = timedelta(hours=1)  # a certificate that is replaced in time never comes this close
YEAR_MIN: Final = 2025  # a clock before the product existed is not set
DAEMON_SECONDS: Final = 3.0  # a daemon that is well answers in milliseconds


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    message: str
    mend: str = ""


@click.command()
@connected
def doctor(session: Session) -> None:
    """Look for what could be wrong here, and say how to mend it. Exit code 1 when something is.

    \b
    Example:
      knhk doctor
    """
    findings = list(_findings(session))
    if session.output == "table":
        _print(findings)
    else:
        structured(
            [
                {"check": each.check, "verdict": each.verdict, "message": each.message, "mend": each.mend}
                for each in findings
            ],
            session.output,
        )
    errors = sum(each.verdict == "error" for each in findings)
    if errors:
        raise Failure(Exit.FAILED, f"{errors} of {len(findings)} checks found an error", "do what the lines above say")


def _findings(session: Session) -> Iterator[Finding]:
    yield _python()
    yield _clock()
    try:
        flags = {"data_dir": str(session.data_dir)} if session.data_dir is not None else {}
        config = load(flags).config
    except ConfigError as error:
        for problem in error.problems:
            yield Finding(
                "settings",
                "error",
                f"{problem.name}: {problem.message}",
                problem.hint or "mend the setting; `knhk config show` explains each",
            )
        return
    yield Finding("settings", "ok", "can be used")
    daemon, status = _daemon(session)
    running = status is not None
    store = Path(config.store_path)
    yield _directory(store, running)
    yield from _mendings(store)
    yield _space(store)
    yield from _certificates(config)
    yield from _issuers(config)
    yield from _policy(config)
    yield from _ports(config, running)
    yield daemon
    if status is not None:
        yield _limits(status)
        yield from _connectors(session)


def _policy(config: SidecarConfig) -> Iterator[Finding]:
    """Whether the policy can be used, and what in it is worth a second look."""
    if not config.policy_file:
        role = "admin" if config.dev else config.policy_default_role
        yield Finding("policy", "ok", f"none is configured; the own trust domain has the role {role}, others have none")
        return
    try:
        document = read_policy(config.policy_file).document
    except InvalidPolicy as error:
        mend = "mend it; `knhk policy validate FILE` lists everything"
        yield from (Finding("policy", "error", str(problem), mend) for problem in error.problems)
        return
    yield Finding("policy", "ok", f"{config.policy_file} has {len(document.rules)} rules")
    for rule, remark in remarks(document):
        yield Finding("policy", "warning", f"rule {rule} {remark}", "see Who may do what in the README")


def _limits(status: pb.GetStatusResponse) -> Finding:
    """Which calls the daemon's limits have refused."""
    said = next((each.message for each in status.components if each.name == "limits"), "")
    return Finding("limits", "ok", said or "no call was refused since the start")


def _connectors(session: Session) -> Iterator[Finding]:
    """Whether the daemon reaches what its connectors call."""
    try:
        found = all_connectors(session, PROBE_SECONDS).connectors
    except Failure as failure:
        yield Finding("connectors", "warning", failure.message, failure.mend)
        return
    for each in found:
        name = f"{each.name} ({each.kind})"
        if each.health == pb.HEALTH_STATE_HEALTHY:
            yield Finding("connectors", "ok", f"{name}: {each.message}")
        else:
            mend = (
                "start what it calls, or mend its settings: `knhk connector list`; its calls are tried again until then"
            )
            yield Finding("connectors", "error", f"{name}: {each.message}", mend)


def _python() -> Finding:
    found = sys.version_info
    name = (
        f"CPython {found.major}.{found.minor}.{found.micro}"
        if sys.implementation.name == "cpython"
        else sys.implementation.name
    )
    if sys.implementation.name != "cpython" or not (3, 11) <= found[:2] <= (3, 12):
        return Finding("python", "error", f"{name} is not supported", "use CPython 3.11 or 3.12")
    try:
        versions = [f"{name} {getattr(import_module(name), '__version__', '')}".strip() for name in ("grpc", "plyvel")]
    except ImportError as error:
        mend = "install the package again: pip install --force-reinstall knhk-sidecar"
        return Finding("python", "error", f"{error.name} cannot be imported: {error}", mend)
    return Finding("python", "ok", ", ".join((name, *versions)))


def _clock() -> Finding:
    now = datetime.now(tz=UTC)
    if now.year < YEAR_MIN:
        return Finding(
            "clock", "error", f"the clock says {now:%Y-%m-%d}", "set the clock; certificates and timers depend on it"
        )
    drift = abs((time.time() - time.monotonic()) - (_again() - time.monotonic()))
    if drift > 1.0:
        return Finding(
            "clock",
            "warning",
            f"the clock jumped by {drift:.1f} s while being looked at",
            "let one program only set the clock",
        )
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _again() -> float:
    time.sleep(0.01)
    return time.time()


def _directory(store: Path, running: bool) -> Finding:
    parent = store if store.exists() else next(each for each in store.absolute().parents if each.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding(
            "data directory",
            "error",
            f"{parent} cannot be written by this user",
            f"chown it to user id {os.getuid()}, or choose another --data-dir",
        )
    if not store.exists():
        return Finding("data directory", "ok", f"{store} will be made by the first start")
    if not store.is_dir():
        return Finding("data directory", "error", f"{store} is a file", "move it away, or choose another --data-dir")
    if running:
        return Finding("data directory", "ok", f"{store}, in use by the running daemon")
    return _store(store)


def _store(store: Path) -> Finding:
    """Opens the store as a daemon would and closes it again; only called when no daemon has it."""

    async def look() -> None:
        engine = WorkflowEngine(StateStore(str(store), create=False))
        await engine.open()
        await engine.close()

    try:
        asyncio.run(look())
    except StoreLocked as error:
        return Finding("data directory", "warning", str(error), "stop the other process, or talk to it with --address")
    except StoreCorrupt as error:
        return Finding(
            "data directory", "error", str(error), "keep a copy, then restore the last backup; never repair in place"
        )
    except StoreError as error:
        return Finding("data directory", "error", str(error), "choose another --data-dir, or upgrade")
    return Finding("data directory", "ok", f"{store} opens, and its records agree with each other")


def _mendings(store: Path) -> Iterator[Finding]:
    """What opening the store had to cut off, as long as the original is kept."""
    for each in store_mendings(str(store)):
        original = store / each.refused
        if original.exists():
            when = datetime.fromtimestamp(each.time_ns / 1e9, UTC)
            yield Finding(
                "data directory",
                "warning",
                f"{when:%Y-%m-%d %H:%M} UTC: {each.dropped_bytes:,} bytes of an unfinished write were cut off "
                f"{each.log} after a loss of power; nothing acknowledged is missing",
                f"once `knhk verify` says so as well: rm -r {original}",
            )


def _space(store: Path) -> Finding:
    place = next(each for each in (store.absolute(), *store.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free at {place}"
    if free < SPACE_MIN:
        return Finding(
            "disk space", "error", text, "free some space; the store refuses writes before the volume is full"
        )
    if free < SPACE_GOOD:
        return Finding("disk space", "warning", text, "free some space soon")
    return Finding("disk space", "ok", text)


def _certificates(config: SidecarConfig) -> Iterator[Finding]:
    if not (config.tls_cert and config.tls_key and config.tls_ca) or not (config.tls_enabled or config.spiffe_enabled):
        if config.spiffe_enabled:
            said = f"they come from the SPIFFE agent at {config.spiffe_socket}; no files stand in for it"
        else:
            said = "none are configured; `knhk dev` makes its own"
        yield Finding("certificates", "ok", said)
        return
    try:
        material = read_material(TlsFiles(config.tls_cert, config.tls_key, config.tls_ca))
    except InvalidMaterial as error:
        yield Finding(
            "certificates", "error", str(error), "set tls_cert, tls_key and tls_ca to files that belong together"
        )
        return
    yield _expiry(config.tls_cert, material.cert)
    if material.spiffe_id is None and not config.spiffe_trust_domain:
        yield Finding(
            "certificates",
            "error",
            f"{config.tls_cert} has no SPIFFE id",
            "set spiffe_trust_domain to that of the callers",
        )
    mode = Path(config.tls_key).stat().st_mode
    if mode & 0o077:
        yield Finding(
            "certificates", "warning", f"{config.tls_key} can be read by others", f"chmod 600 {config.tls_key}"
        )


def _issuers(config: SidecarConfig) -> Iterator[Finding]:
    """Whether the keys that tokens are verified with can be had now."""
    if not config.issuers_file:
        return
    from knhk_sidecar.identity.jwks import InvalidKeys  # noqa: PLC0415 - only who has issuers pays for it
    from knhk_sidecar.identity.jwks_source import keys_now  # noqa: PLC0415
    from knhk_sidecar.identity.oidc import read_issuers  # noqa: PLC0415

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the answer may be read by a program
    try:
        issuers = read_issuers(config.issuers_file)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("issuers", "error", str(problem), problem.hint or "mend the file; the daemon does not start")
        return
    for name, issuer in issuers.items():
        try:
            keys = asyncio.run(keys_now(name, issuer))
        except InvalidKeys as error:
            mend = "tokens with known keys are accepted all the same; see whether the issuer can be reached from here"
            yield Finding("issuers", "warning", f"{name}: {error}", mend)
        else:
            yield Finding("issuers", "ok", f"{name}: {issuer.issuer} has {len(keys.keys)} keys")


def _expiry(path: str, pem: bytes) -> Finding:
    leaf = x509.load_pem_x509_certificates(pem)[0]
    now = datetime.now(tz=UTC)
    left = leaf.not_valid_after_utc - now
    if leaf.not_valid_before_utc > now:
        return Finding(
            "certificates",
            "error",
            f"{path} is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only",
            "compare this host's clock with the authority's",
        )
    if left <= timedelta(0):
        return Finding(
            "certificates",
            "error",
            f"{path} ended {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            "put a new certificate in its place; the daemon takes it by itself",
        )
    if left < EXPIRY_NEAR:
        return Finding(
            "certificates",
            "warning",
            f"{path} ends in {int(left.total_seconds() // 60)} min",
            "see whether whatever renews it still runs",
        )
    return Finding("certificates", "ok", f"{path} is good until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


def _ports(config: SidecarConfig, running: bool) -> Iterator[Finding]:
    for name in ("address", "http_address", "metrics_address"):
        address: str = getattr(config, name)
        if not address:
            continue
        if running:
            continue
        host, port = split_address(address)
        try:
            _bind(host, port)
        except OSError as error:
            yield Finding(
                "ports",
                "error",
                f"{address} ({name}) cannot be had: {error.strerror or error}",
                f"stop what listens there, or set {name} to another port",
            )
        else:
            yield Finding("ports", "ok", f"{address} ({name}) is free")
    if running:
        yield Finding("ports", "ok", "the running daemon has its ports")


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, target = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)


def _daemon(session: Session) -> tuple[Finding, pb.GetStatusResponse | None]:
    """Whether a daemon answers, and what it answers: one that is not well has its store and its ports all the same."""
    try:
        with session.client() as client:
            status = client.admin.GetStatus(pb.GetStatusRequest(omit_document_schema=True), timeout=DAEMON_SECONDS)
    except Failure as failure:
        verdict: Verdict = "error" if session.address else "warning"
        return Finding("daemon", verdict, failure.message, failure.mend), None
    health = pb.HealthState.Name(status.health).removeprefix("HEALTH_STATE_").lower()
    text = f"{client.endpoint.address} answers: version {status.version}, {health}, store {status.store_kind}"
    text += f", you are {status.principal}"
    if status.health != pb.HEALTH_STATE_HEALTHY:
        ill = "; ".join(
            f"{each.name}: {each.message}" for each in status.components if each.state != pb.HEALTH_STATE_HEALTHY
        )
        return Finding("daemon", "warning", f"{text}. {ill}", "its log says more"), status
    return Finding("daemon", "ok", text), status


def _print(findings: Sequence[Finding]) -> None:
    styles = {"ok": "green", "warning": "yellow", "error": "bold red"}
    for each in findings:
        line = Text.assemble((f"{each.verdict:<8}", styles[each.verdict]), (f"{each.check:<16}", "bold"), each.message)
        console().print(line, soft_wrap=True)
        if each.mend and each.verdict != "ok":
            console().print(Text(f"{'':<24}{each.mend}", style="cyan"), soft_wrap=True)
