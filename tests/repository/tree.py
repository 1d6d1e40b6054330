"""The repository as files: its root, what belongs to it, and what its declarations say."""

from __future__ import annotations

import functools
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("knhk_workflow", "knhk_sidecar")
LOCKS = ("build.txt", "runtime.txt", "development.txt")


def files() -> Iterator[Path]:
    """Every file under version control, and every new one that is not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file():
            yield path


@dataclass(frozen=True, slots=True)
class Project:
    """The parts of pyproject.toml that tests compare with something else."""

    version: str
    runtime: tuple[Requirement, ...]
    extras: tuple[Requirement, ...]
    development: tuple[Requirement, ...]


@functools.cache
def project() -> Project:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = declared["dependency-groups"]
    extras = declared["project"]["optional-dependencies"]
    return Project(
        version=declared["project"]["version"],
        runtime=tuple(map(Requirement, declared["project"]["dependencies"])),
        extras=tuple(Requirement(line) for lines in extras.values() for line in lines),
        development=tuple(Requirement(line) for lines in groups.values() for line in lines if isinstance(line, str)),
    )


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of a lock."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def version(self) -> str:
        (specifier,) = self.requirement.specifier
        assert specifier.operator == "==", f"{self.requirement} is not pinned"
        return specifier.version


def lock(name: str) -> tuple[Pin, ...]:
    """The pins of `requirements/<name>`; one logical line each, continued by backslashes."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    pins = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = line.split("--hash=")
            pins.append(Pin(Requirement(requirement.strip()), tuple(value.strip() for value in hashes)))
    return tuple(pins)
