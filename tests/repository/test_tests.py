"""The tests keep their own rules: the real thing instead of mocks, and nothing left out."""

from __future__ import annotations

import ast

from tests.repository import tree

MOCKS = {"mock", "unittest.mock", "pytest_mock"}
LEFT_OUT = {"skip", "skipif", "xfail", "importorskip"}


def test_no_mock_and_no_test_left_out() -> None:
    found = []
    for path in tree.files():
        if path.suffix != ".py" or not path.is_relative_to(tree.ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
            match node:
                case ast.Import(names=names) if any(alias.name in MOCKS for alias in names):
                    found.append(f"{path.relative_to(tree.ROOT)}:{node.lineno}: a mock library")
                case ast.ImportFrom(module="mock" | "unittest.mock" | "pytest_mock"):
                    found.append(f"{path.relative_to(tree.ROOT)}:{node.lineno}: a mock library")
                case ast.ImportFrom(module="unittest", names=names) if any(alias.name == "mock" for alias in names):
                    found.append(f"{path.relative_to(tree.ROOT)}:{node.lineno}: a mock library")
                case ast.Attribute(attr=name, value=ast.Name(id="pytest") | ast.Attribute(attr="mark")) if (
                    name in LEFT_OUT
                ):
                    found.append(f"{path.relative_to(tree.ROOT)}:{node.lineno}: a test that may not run")
    assert found == []
