"""One daemon for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sidecar.policy.daemon import Guarded, guarded


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A daemon whose callers have the built-in roles, in two tenants."""
    with guarded(tmp_path_factory.mktemp("guarded")) as running:
        yield running
