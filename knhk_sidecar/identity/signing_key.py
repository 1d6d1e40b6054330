"""The key that signs what leaves the daemon: a PEM file of mode 0600, and the public half beside it.

It lies among the store's files, outside of the database: backups do not carry it. A store that was restored elsewhere
gets a key of its own, unless the old one is configured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from knhk_sidecar import files
from knhk_workflow import InvalidInput, SigningKey

KEY_NAME: Final = "SIGNING_KEY"
_OTHERS: Final = 0o077


class InvalidKey(Exception):
    """Why a file cannot be used, as one sentence."""


def read_key(path: Path) -> SigningKey:
    """The key in a file. Raises InvalidKey when it is none, or when others than its owner can read it."""
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as error:
        raise InvalidKey(f"the signing key {path} cannot be read: {error.strerror}") from error
    if mode & _OTHERS:
        raise InvalidKey(f"the signing key {path} can be read by others: chmod 600 {path}")
    try:
        return SigningKey.from_pem(pem)
    except InvalidInput as error:
        raise InvalidKey(f"the signing key {path} cannot be used: {error.message}") from error


def read_or_make_key(path: Path) -> SigningKey:
    """The key at `path`, made there when there is none; `path`.pub always has its public half. Raises InvalidKey."""
    try:
        if not path.exists():
            files.replace(path, SigningKey.generate().pem(), 0o600, durable=True)
        key = read_key(path)
        public = path.with_name(f"{path.name}.pub")
        if not public.exists() or public.read_bytes() != key.public_pem():
            files.replace(public, key.public_pem(), 0o644, durable=True)
    except OSError as error:
        raise InvalidKey(f"the signing key {path} cannot be written: {error.strerror}") from error
    return key
