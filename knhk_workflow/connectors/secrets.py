"""Credentials by reference: settings name where a secret is, and only the connector reads it, when it calls.

    {"env": "BILLING_TOKEN"}       a variable of the process's environment
    {"file": "/run/secrets/token"} the content of a file, without the line's end; read for each call

A setting cannot hold a secret itself, so that none is stored, shown or recorded. `Vault` says which references may be
used: those in the daemon's own file are its operator's; those that come by a call are kept to variables with a prefix
and files below one directory, because whoever may configure a connector must not thereby read the daemon's other
secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from knhk_workflow.connectors.connector import CallFailed
from knhk_workflow.errors import InvalidInput

VARIABLE_PREFIX: Final = "KNHK_SECRET_"
SECRET_BYTES_MAX: Final = 64 * 1024  # a certificate chain with its key
MASK: Final = "********"
SCRUBBED_CHARS_MIN: Final = 6  # what is shorter occurs by chance


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A reference: exactly one of both."""

    env: str = ""
    file: str = ""


class Vault:
    """Where the secrets of connectors come from."""

    def __init__(self, environ: Mapping[str, str], directory: str = "", *, trusted: bool = False) -> None:
        """`trusted`: any variable and any file; otherwise VARIABLE_PREFIX and files below `directory`."""
        self._environ = environ
        self._directory = Path(directory).resolve() if directory else None
        self._trusted = trusted

    def check(self, secret: Secret, path: str) -> None:
        """Raises InvalidInput for a reference that may not be used here."""
        if bool(secret.env) == bool(secret.file):
            raise InvalidInput.field(path, "names a variable or a file", 'for example {"env": "KNHK_SECRET_BILLING"}')
        if self._trusted:
            return
        if secret.env and not secret.env.startswith(VARIABLE_PREFIX):
            raise InvalidInput.field(path, f"the variable's name must begin with {VARIABLE_PREFIX}")
        if secret.file and self._file(secret.file) is None:
            raise InvalidInput.field(path, "the file must lie in the directory of connectors' secrets")

    def read(self, secret: Secret) -> str:
        """The secret. Raises CallFailed when it is not there."""
        if secret.env:
            value = self._environ.get(secret.env, "")
            if not value:
                raise CallFailed("no_credentials", f"the variable {secret.env} is not set", blame=False)
            return value
        file = self._file(secret.file)
        try:
            if file is None:
                raise PermissionError(1, "it does not lie in the directory of connectors' secrets")
            with file.open("rb") as stream:
                content = stream.read(SECRET_BYTES_MAX + 1)
            if len(content) > SECRET_BYTES_MAX:
                raise PermissionError(1, f"it is larger than {SECRET_BYTES_MAX} bytes")
            return content.decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise CallFailed("no_credentials", f"{secret.file} cannot be read: {reason}", blame=False) from error

    def path(self, file: str, path: str) -> str:
        """Where a file is that settings name, such as a certificate. Raises InvalidInput when it may not be read."""
        self.check(Secret(file=file), path)
        return str(self._file(file))

    def _file(self, name: str) -> Path | None:
        path = Path(name)
        if self._trusted:
            return path
        if self._directory is None:
            return None
        found = (self._directory / path).resolve()
        return found if found.is_relative_to(self._directory) else None


def scrubbed(text: str, secrets: tuple[str, ...]) -> str:
    """A text without the secrets that the other side may have repeated."""
    for secret in secrets:
        if len(secret) >= SCRUBBED_CHARS_MIN:
            text = text.replace(secret, MASK)
    return text
