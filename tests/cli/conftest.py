from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.daemon import Daemon, running


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the package; tests use cases of their own."""
    with running(tmp_path_factory.mktemp("cli") / "data") as found:
        yield found
