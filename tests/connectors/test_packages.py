"""Kinds of connectors that come with installed packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from knhk_sidecar.config import ConfigError, SidecarConfig
from knhk_sidecar.connectors.configured import connectors_of

MODULE = """
def make(settings, surroundings):
    return settings


NOTHING = 7
"""


def install(directory: Path, entries: str, name: str = "shop") -> None:
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[knhk.connectors]\n{entries}\n")
    (directory / "shop_connectors.py").write_text(MODULE)


def test_an_installed_kind_is_one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "smtp = shop_connectors:make")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert set(connectors_of(SidecarConfig(), {}).kinds) == {"grpc", "smtp"}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("grpc = shop_connectors:make", "grpc = shop_connectors:make: this kind of connector is there already"),
        ("http = shop_connectors:make", "is there already"),
        ("smtp = shop_connectors:gone", "cannot be loaded: AttributeError"),
        ("smtp = nowhere:make", "cannot be loaded: ModuleNotFoundError"),
        ("smtp = shop_connectors:NOTHING", "is no function"),
    ],
)
def test_a_package_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, problem: str
) -> None:
    install(tmp_path, entry)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=problem):
        connectors_of(SidecarConfig(), {})


def test_two_packages_of_one_kind_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "smtp = shop_connectors:make")
    install(tmp_path, "smtp = shop_connectors:make", "store")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="is there already"):
        connectors_of(SidecarConfig(), {})
