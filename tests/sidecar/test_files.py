"""Small files that are replaced: whole, with their mode, and with nothing left beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from knhk_sidecar import files


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(("mode", "has"), [(0o600, 0o600), (0o644, 0o644), (0o666, 0o644)])
def test_a_file_has_its_content_and_its_mode_whatever_was_there(
    tmp_path: Path, mode: int, has: int, durable: bool
) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"before, and longer")
    path.chmod(0o777)
    was = files.stamp(path)
    files.replace(path, b"after", mode, durable=durable)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"after", has)
    assert files.stamp(path) != was
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "link", tmp_path / "other"
    other.write_bytes(b"of somebody else")
    path.symlink_to(other)
    (tmp_path / f".link.{os.getpid()}.part").symlink_to(other)
    files.replace(path, b"ours", 0o600)
    assert (path.is_symlink(), path.read_bytes(), other.read_bytes()) == (False, b"ours", b"of somebody else")


def test_what_fails_leaves_what_was_there_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        files.replace(path, b"secret", 0o600, durable=True)
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


def test_a_missing_file_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert files.stamp(path) == files.MISSING
    path.write_bytes(b"")
    there = files.stamp(path)
    assert there == files.stamp_of(path.stat()) != files.MISSING
    path.unlink()
    assert files.stamp(path) == files.MISSING
