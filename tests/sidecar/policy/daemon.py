"""A daemon as in production, in a process of its own, whose callers are told apart by certificates and policy alone.

`spiffe://shop.example/role/ROLE/TENANT` has the built-in role ROLE and the tenant TENANT.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from knhk_sidecar.identity import dev_ca
from knhk_sidecar.identity.policy_document import BUILT_IN_ROLES
from knhk_sidecar.identity.spiffe_id import TrustDomain
from tests.e2e.sidecar import FREE, ROOT, START_SECONDS, STOP_SECONDS, environment
from tests.sidecar.server.client import secure

DOMAIN = TrustDomain("shop.example")
TENANTS = ("red", "blue")
NO_ROLE = "none"
ROLES = (*BUILT_IN_ROLES, NO_ROLE)


def rules() -> list[dict[str, object]]:
    """A rule per role, the tenant being the last segment of the path; and `/narrow`, who sees some cases only, and
    `/people`, who are clerks of `red`."""
    found: list[dict[str, object]] = [
        {
            "id": f"role-{role}",
            "who": {"spiffe_prefix": f"spiffe://{DOMAIN}/role/{role}"},
            "effect": "allow",
            "roles": [role],
            "tenant": {"segment": 3},
        }
        for role in BUILT_IN_ROLES
    ]
    narrowed: dict[str, object] = {
        "id": "narrowed",
        "who": {"spiffe_prefix": f"spiffe://{DOMAIN}/narrow"},
        "effect": "allow",
        "permissions": ["case.read", "workflow.read"],
        "resources": {"cases": ["n-*"]},
    }
    people: dict[str, object] = {
        "id": "people",
        "who": {"spiffe_prefix": f"spiffe://{DOMAIN}/people"},
        "effect": "allow",
        "roles": ["worker"],
        "tenant": "red",
        "work_roles": ["clerk"],
    }
    return [*found, narrowed, people]


def document(*more: dict[str, object]) -> str:
    """The policy with more rules."""
    return json.dumps({"version": 1, "rules": [*rules(), *more]})


def who(role: str, tenant: str) -> str:
    """The SPIFFE id of a caller."""
    return f"spiffe://{DOMAIN}/role/{role}/{tenant}"


@dataclass(frozen=True, slots=True)
class Guarded:
    """The running daemon."""

    process: subprocess.Popen[bytes]
    ready: Mapping[str, str]
    directory: Path
    authority: dev_ca.DevAuthority

    @property
    def policy(self) -> Path:
        """The file that is followed."""
        return self.directory / "policy.json"

    @property
    def log(self) -> str:
        """Everything that it has written."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def svid(self, path: str) -> dev_ca.Svid:
        """A certificate for a path of the trust domain."""
        return self.authority.issue(path.strip("/").replace("/", "-"), path)

    def channel(self, path: str) -> grpc.aio.Channel:
        """gRPC as the caller with this path."""
        svid = self.svid(path)
        ca = self.authority.ca.read_bytes()
        return secure(self.ready["grpc"], ca, svid.cert.read_bytes(), svid.key.read_bytes())

    def as_role(self, role: str, tenant: str) -> grpc.aio.Channel:
        """gRPC as the caller with this role and tenant."""
        return self.channel(f"/role/{role}/{tenant}")

    def rest(self, path: str) -> http.client.HTTPSConnection:
        """REST as the caller with this path."""
        svid = self.svid(path)
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        context.load_cert_chain(svid.cert, svid.key)
        host, _, port = self.ready["http"].rpartition(":")
        return http.client.HTTPSConnection(host, int(port), timeout=60, context=context)

    def replace(self, text: str) -> None:
        """Another policy, at once as a whole."""
        part = self.policy.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.policy)


@contextmanager
def guarded(directory: Path) -> Iterator[Guarded]:
    """A running daemon, gone at the end of the block."""
    authority = dev_ca.open_authority(directory / "ca", DOMAIN)
    server = authority.issue_server()
    policy, ready = directory / "policy.json", directory / "ready.json"
    policy.write_text(document(), encoding="utf-8")
    settings = {
        "KGC_SIDECAR_TLS_ENABLED": "true",
        "KGC_SIDECAR_TLS_CERT": str(server.cert),
        "KGC_SIDECAR_TLS_KEY": str(server.key),
        "KGC_SIDECAR_TLS_CA": str(authority.ca),
        "KGC_SIDECAR_POLICY_FILE": str(policy),
        "KGC_SIDECAR_REFLECTION_ENABLED": "true",
        "KGC_SIDECAR_CONNECTOR_ALLOW": "http://127.0.0.1:*",
        "KGC_SIDECAR_CONNECTOR_NETWORKS": "127.0.0.0/8",
        "KGC_SIDECAR_HEALTH_ADDRESS": FREE,
    }
    line = [sys.executable, "-m", "knhk_sidecar", "serve", "--data-dir", str(directory / "data")]
    line += ["--ready-file", str(ready), "--grpc-address", FREE, "--http-address", FREE, "--metrics-address", "off"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, env=environment(settings), cwd=ROOT)
    try:
        until = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < until, (directory / "log").read_text()
            time.sleep(0.01)
        yield Guarded(process, json.loads(ready.read_text()), directory, authority)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(STOP_SECONDS)
