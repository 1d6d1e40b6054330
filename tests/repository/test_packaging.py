"""What is declared is true: versions, type markers, dependencies, the console script."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import knhk_workflow
from tests.repository import tree


def test_the_package_says_the_version_that_is_declared() -> None:
    assert knhk_workflow.__version__ == tree.project().version
    assert importlib.metadata.version("knhk-sidecar") == tree.project().version


def test_the_changelog_knows_the_version() -> None:
    assert f"[{tree.project().version}]" in (tree.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", tree.PACKAGES)
def test_a_package_carries_its_type_marker(package: str) -> None:
    assert (tree.ROOT / package / "__init__.py").is_file()
    assert (tree.ROOT / package / "py.typed").is_file()


def test_the_console_script_can_be_loaded() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="knhk")
    assert callable(script.load())


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """The absolute imports of one file as (top-level name, dotted name).

    `from a import b` yields `a.b`, for `a` may be a namespace that several distributions share.
    """
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield alias.name.partition(".")[0], alias.name
            case ast.ImportFrom(module=str(module), level=0):
                for alias in node.names:
                    yield module.partition(".")[0], f"{module}.{alias.name}"


# `google` is a namespace; the distributions below share it.
GOOGLE = {
    "google.protobuf": "protobuf",
    "google.api": "googleapis-common-protos",
    "google.rpc": "googleapis-common-protos",
}


def distributions(top: str, dotted: str) -> set[str]:
    """The installed distributions that provide an import, without those that only bring its types."""
    if top == "google":
        return {name for prefix, name in GOOGLE.items() if dotted.startswith(prefix)}
    return {canonicalize_name(name) for name in PROVIDERS.get(top, ())}


PROVIDERS = importlib.metadata.packages_distributions()


BROUGHT_BY_WHO_LOADS = {("pytest_plugin.py", "pytest")}
"""Modules that only the program they are for imports, so that the package need not bring it."""


@pytest.mark.parametrize("package", tree.PACKAGES)
def test_every_third_party_import_is_a_declared_dependency(package: str) -> None:
    project = tree.project()
    declared = {canonicalize_name(requirement.name) for requirement in (*project.runtime, *project.extras)}
    undeclared = sorted(
        f"{path.relative_to(tree.ROOT)} imports {dotted}"
        for path in tree.files()
        if path.suffix == ".py" and path.is_relative_to(tree.ROOT / package)
        for top, dotted in imported(path)
        if top not in sys.stdlib_module_names
        and top not in tree.PACKAGES
        and top != "knhk"
        and (path.name, top) not in BROUGHT_BY_WHO_LOADS
        and not distributions(top, dotted) & declared
    )
    assert undeclared == []
