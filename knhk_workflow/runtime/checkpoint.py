"""Checkpoints: how much a log has, under one root, signed, as a text that anybody can keep elsewhere.

The text is a signed note with a checkpoint in it, as transparency logs have them (C2SP `tlog-checkpoint`):

    sidecar.knhk.org/audit/4f0c.../0        whose log: the store, and its shard
    1284                                    how many batch records
    q6CVQoWl...=                            root of the tree over them (RFC 6962), base64
    time 2026-11-21T17:00:00.123456789Z     when it was signed
                                            (an empty line)
    — sidecar.knhk.org/audit/4f0c.../0 Az3grl...   Ed25519 over the lines above

A file may hold several, one behind the other. Whoever keeps one outside of the host can tell later that the log has
lost or changed something: a log that continues it proves so, any other cannot.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

import msgspec

from knhk_workflow.errors import InvalidInput
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.signature import SigningKey, note_signed_by
from knhk_workflow.runtime.spelled import from_base64

ORIGIN: Final = "sidecar.knhk.org/audit/"
CHECKPOINTS_MAX: Final = 8_192  # in one file: a store has at most 4,097 logs
NOTE_BYTES_MAX: Final = 4_096
_ED25519: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_NAME = re.compile(r"[0-9a-f]{32}/(0|[1-9][0-9]{0,4})")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})Z")
_DASH: Final = "\u2014 "


class Checkpoint(msgspec.Struct, frozen=True):
    """The first `size` batch records of a store's log have this root. `note` is the signed text."""

    store: str
    shard: int
    size: int
    root: bytes
    time_ns: int
    note: str

    @property
    def origin(self) -> str:
        """The log's name."""
        return f"{ORIGIN}{self.store}/{self.shard}"


def signed_checkpoint(store: str, shard: int, size: int, root: bytes, time_ns: int, key: SigningKey) -> Checkpoint:
    """A new one."""
    name = f"{ORIGIN}{store}/{shard}"
    text = f"{name}\n{size}\n{b64encode(root).decode()}\ntime {_time_text(time_ns)}\n"
    mark = _key_id(name, key.public) + key.sign_note(text.encode())
    note = f"{text}\n{_DASH}{name} {b64encode(mark).decode()}\n"
    return Checkpoint(store, shard, size, root, time_ns, note)


def read_checkpoints(text: str) -> Sequence[Checkpoint]:
    """The checkpoints of a file, signatures unchecked. Raises InvalidInput for what is none."""
    found: list[Checkpoint] = []
    rest = text
    while rest:
        body, blank, behind = rest.partition("\n\n")
        line, _, rest = behind.partition("\n")
        if not blank or not line.startswith(_DASH) or len(body) > NOTE_BYTES_MAX or len(found) == CHECKPOINTS_MAX:
            raise _no_checkpoint()
        while rest.startswith(_DASH):  # signatures of others, witnesses perhaps
            _, _, rest = rest.partition("\n")
        rest = rest.lstrip("\n")
        found.append(_read(body + "\n", line))
    if not found:
        raise _no_checkpoint()
    return found


def signed(checkpoint: Checkpoint, public: bytes) -> bool:
    """Whether the owner of a public key (32 bytes) signed a checkpoint."""
    text, _, signatures = checkpoint.note.partition("\n\n")
    for line in signatures.splitlines():
        name, _, mark = line.removeprefix(_DASH).partition(" ")
        try:
            raw = from_base64(mark)
        except ValueError:
            continue
        if name == checkpoint.origin and raw[:_KEY_ID_BYTES] == _key_id(name, public):
            return note_signed_by(public, f"{text}\n".encode(), raw[_KEY_ID_BYTES:])
    return False


def _read(text: str, signature: str) -> Checkpoint:
    lines = text.splitlines()
    name = lines[0].removeprefix(ORIGIN) if lines else ""
    told = _TIME.fullmatch(lines[3].removeprefix("time ")) if len(lines) == 4 else None
    if told is None or not lines[0].startswith(ORIGIN) or not _NAME.fullmatch(name) or not lines[1].isdecimal():
        raise _no_checkpoint()
    store, _, shard = name.partition("/")
    try:
        root = from_base64(lines[2])
        at = datetime.fromisoformat(told[1]).replace(tzinfo=UTC)
    except ValueError as error:
        raise _no_checkpoint() from error
    time_ns = int(at.timestamp()) * NS_PER_S + int(told[2])
    found = Checkpoint(store, int(shard), int(lines[1]), root, time_ns, f"{text}\n{signature}\n")
    if len(root) != 32 or str(found.size) != lines[1] or f"time {_time_text(time_ns)}" != lines[3]:
        raise _no_checkpoint()
    return found


def _key_id(name: str, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_KEY_ID_BYTES]


def _time_text(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _no_checkpoint() -> InvalidInput:
    return InvalidInput.field("checkpoint", "is not a checkpoint of an audit", "use one that the daemon has pushed")
