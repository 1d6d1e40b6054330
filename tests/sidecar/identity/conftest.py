"""The daemon in developer mode, for tests of identities."""

from tests.sidecar.server.conftest import sidecar

__all__ = ["sidecar"]
