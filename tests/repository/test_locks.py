"""The locks pin every package by hash, agree with each other, and satisfy what pyproject.toml asks for."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repository import tree

SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


@pytest.mark.parametrize("name", tree.LOCKS)
def test_every_pin_has_hashes(name: str) -> None:
    pins = tree.lock(name)
    assert pins
    for pin in pins:
        assert pin.version
        assert pin.hashes, f"{pin.requirement} has no hash"
        assert all(SHA256.fullmatch(value) for value in pin.hashes), pin.requirement


@pytest.mark.parametrize("name", tree.LOCKS)
def test_a_lock_holds_pins_and_no_options(name: str) -> None:
    lines = (tree.ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("-") or "://" in line] == []


@pytest.mark.parametrize("name", ["build.txt", "runtime.txt"])
def test_a_smaller_lock_is_part_of_the_development_lock(name: str) -> None:
    development = {canonicalize_name(pin.requirement.name): pin for pin in tree.lock("development.txt")}
    for pin in tree.lock(name):
        assert development[canonicalize_name(pin.requirement.name)] == pin


def unmet(name: str, wanted: tuple[Requirement, ...]) -> list[str]:
    pinned = {canonicalize_name(pin.requirement.name): pin.version for pin in tree.lock(name)}
    return [
        str(requirement)
        for requirement in wanted
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]


def test_the_locks_satisfy_the_declared_bounds() -> None:
    project = tree.project()
    assert unmet("runtime.txt", project.runtime) == [], "run scripts/lock"
    assert unmet("development.txt", project.runtime + project.development) == [], "run scripts/lock"
