"""The tree names packages, never the host that they are fetched from: behind a mirror it builds unchanged."""

from __future__ import annotations

import re

from tests.repository import tree

# In parts, so that this file itself stays clean.
HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("proxy", "golang", "org"),
        ("sum", "golang", "org"),
        ("goproxy", "io"),
        ("crates", "io"),
        ("repo1", "maven", "org"),
        ("repo", "maven", "apache", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
    )
)
HOST = re.compile("|".join(rf"(?<![\w-]){re.escape(host)}(?![\w-])" for host in HOSTS).encode(), re.IGNORECASE)


def test_no_registry_host_is_named() -> None:
    named = [
        f"{path.relative_to(tree.ROOT)}:{number}: {match.group().decode()}"
        for path in tree.files()
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
        for match in HOST.finditer(line)
    ]
    assert named == []


def test_the_pattern_finds_a_host_inside_an_address() -> None:
    assert all(HOST.search(f"https://{host}/simple".encode()) for host in HOSTS)
    assert HOST.search(f"https://files.{HOSTS[1]}/packages/".encode())
    assert not HOST.search(b"https://github.com/fullstorydev/grpcurl")
