"""The file of a policy is followed; what cannot be used changes nothing and is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from knhk_sidecar.app import CannotStart, Sidecar
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity.permission import Permission
from knhk_sidecar.identity.policy_document import InvalidPolicy
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import of_certificate
from knhk_sidecar.identity.spiffe_id import SpiffeId

CALLER = of_certificate(SpiffeId.parse("spiffe://a.org/x"))
LOOK_SECONDS = 0.02


def text(*roles: str) -> str:
    rules = "".join(f"- {{id: r-{role}, who: {{anyone: true}}, effect: allow, roles: [{role}]}}\n" for role in roles)
    return f"version: 1\nrules:\n{rules}" if rules else "version: 1\nrules: []\n"


def rules(policies: Policies) -> tuple[str, ...]:
    """The rules that apply to the caller now."""
    return policies.decide(CALLER).grants.rules


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        for _ in iter(condition, True):
            await asyncio.sleep(0.005)


@asynccontextmanager
async def followed(path: Path) -> AsyncIterator[Policies]:
    policies = Policies.of_file(str(path))
    following = asyncio.ensure_future(policies.follow(LOOK_SECONDS))
    try:
        yield policies
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def test_a_new_file_counts_for_callers_known_before(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text("viewer"))
    async with followed(path) as policies:
        told: list[tuple[str, ...]] = []
        policies.changed.append(lambda: told.append(rules(policies)))
        assert rules(policies) == ("r-viewer",)
        path.write_text(text("admin"))
        await until(lambda: rules(policies) == ("r-admin",))
        assert told == [("r-admin",)]
        assert policies.decide(CALLER).grants.verdict(Permission.BACKUP).allowed


@pytest.mark.parametrize("bad", [b"version: 1\nrules: [", b"version: 9\nrules: []\n", b"\xff", None])
async def test_what_cannot_be_used_changes_nothing_until_it_is_mended(tmp_path: Path, bad: bytes | None) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text("viewer"))
    async with followed(path) as policies:
        before = policies.current
        path.unlink() if bad is None else path.write_bytes(bad)
        await until(lambda: policies.problem != "")
        assert str(path) in policies.problem
        assert policies.current is before
        path.write_text(text("worker"))
        await until(lambda: rules(policies) == ("r-worker",))
        assert policies.problem == ""


async def test_a_file_that_is_still_being_written_does_not_count(tmp_path: Path) -> None:
    """Each piece is a valid policy; those without the last line let in whom it denies."""
    path = tmp_path / "policy.yaml"
    path.write_text(text())
    async with followed(path) as policies:
        seen: list[int] = []
        policies.changed.append(lambda: seen.append(len(policies.current.document.rules)))
        with path.open("w") as slow:
            slow.write("version: 1\nrules:\n")
            for number in range(12):
                effect = "allow" if number < 11 else "deny"
                slow.write(f"- {{id: r{number}, who: {{anyone: true}}, effect: {effect}, permissions: ['*']}}\n")
                slow.flush()
                await asyncio.sleep(LOOK_SECONDS / 4)
        await until(lambda: len(policies.current.document.rules) == 12)
        assert not policies.decide(CALLER).grants.verdict(Permission.BACKUP).allowed


async def test_a_volume_of_kubernetes_is_followed(tmp_path: Path) -> None:
    """The file is a link through a link to a directory that is exchanged at once."""
    for name, role in (("one", "viewer"), ("two", "admin")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.yaml").write_text(text(role))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")
    async with followed(tmp_path / "policy.yaml") as policies:
        assert rules(policies) == ("r-viewer",)
        (tmp_path / "new").symlink_to("two")
        os.replace(tmp_path / "new", tmp_path / "..data")
        await until(lambda: rules(policies) == ("r-admin",))


def test_a_file_that_is_absent_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidPolicy, match="cannot be read"):
        Policies.of_file(str(tmp_path / "none.yaml"))


async def test_a_daemon_does_not_start_with_a_bad_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nrules:\n- {id: X!, who: {}, effect: no}\n")
    free = "127.0.0.1:0"
    config = SidecarConfig(
        dev=True, data_dir=str(tmp_path / "data"), policy_file=str(path), workflow_enabled=False,
        address=free, plain_address=free, http_address="", metrics_address="",
    )  # fmt: skip
    with pytest.raises(CannotStart) as caught:
        await Sidecar(config).start()
    for where in ("rules[0].id", "rules[0].who", "rules[0].effect"):
        assert where in str(caught.value)
    assert caught.value.exit_code == 2
