"""`pytest tests/patterns --rewrite` writes the stories anew from what the core does: read the difference first."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write golden stories anew instead of comparing them")


@pytest.fixture
def rewrite(pytestconfig: pytest.Config) -> bool:
    """Whether golden files are to be written."""
    return bool(pytestconfig.getoption("--rewrite", default=False))
