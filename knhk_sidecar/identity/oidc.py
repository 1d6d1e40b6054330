"""Which issuers' tokens count: a file, read once at the start.

[issuers.corporate]                       # any name; it appears in the log and in health
issuer = "https://login.example.org"      # exactly as `iss` has it
audiences = ["knhk"]                      # one of them has to be in `aud`
algorithms = ["RS256", "ES256"]           # default: RS, PS and ES with 256, 384 and 512
subject_claim = "sub"                     # who is calling; must be the issuer's own and never given to another
required_claims = {azp = "billing"}       # a value, or a list of which one; an array has to contain it
jwks_uri = ""                             # default: what the issuer's discovery document says
jwks_file = ""                            # instead of both: a file, which may be replaced at any time
ca = ""                                   # PEM file of authorities for HTTPS; default: those of the system
lifetime_seconds = 86400                  # tokens that live longer are refused
refetch_seconds = 10                      # an unknown key id makes the keys be fetched anew at most this often
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from knhk_sidecar.config import ISSUERS_TABLE, ConfigError, Problem
from knhk_sidecar.hosts import is_this_host
from knhk_sidecar.identity.jwks import ALGORITHMS

ISSUERS_MAX: Final = 16  # each is fetched from time to time
LIFETIME_DEFAULT: Final = 86_400  # s; a token cannot be called back, so that a stolen one is good for a day at most
REFETCH_DEFAULT: Final = 10  # s; whoever makes key ids up must not make us a load on the issuer

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Wanted = str | int | bool | tuple[str, ...]


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One issuer of tokens. See the module."""

    issuer: _Name
    audiences: Annotated[tuple[_Name, ...], msgspec.Meta(min_length=1)]
    algorithms: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ALGORITHMS
    subject_claim: _Name = "sub"
    required_claims: Mapping[str, Wanted] = {}
    jwks_uri: str = ""
    jwks_file: str = ""
    ca: str = ""
    lifetime_seconds: Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)] = LIFETIME_DEFAULT
    refetch_seconds: Annotated[int, msgspec.Meta(ge=1, le=3_600)] = REFETCH_DEFAULT


def read_issuers(path: str) -> Mapping[str, Issuer]:
    """The issuers of a file by their names. Raises ConfigError with every problem."""
    import tomllib  # noqa: PLC0415 - only a daemon with such a file pays for it

    try:
        with open(path, "rb") as stream:
            document = tomllib.load(stream)
    except OSError as error:
        raise ConfigError([Problem("issuers_file", f"{path} cannot be read: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("issuers_file", f"{path} is not TOML: {error}")]) from error
    table = document.get(ISSUERS_TABLE)
    if not isinstance(table, dict) or not 0 < len(table) <= ISSUERS_MAX:
        hint = "write [issuers.NAME] with issuer and audiences"
        raise ConfigError([Problem("issuers_file", f"{path} has no table of 1 to {ISSUERS_MAX} issuers", hint)])
    problems: list[Problem] = []
    found: dict[str, Issuer] = {}
    for name, value in table.items():
        try:
            issuer = msgspec.convert(value, Issuer)
        except msgspec.ValidationError as error:
            problems.append(Problem(f"{path}: issuers.{name}", str(error)))
            continue
        problems += [Problem(f"{path}: issuers.{name}", each) for each in _wrong(issuer)]
        if any(issuer.issuer == other.issuer for other in found.values()):
            problems.append(Problem(f"{path}: issuers.{name}", f"{issuer.issuer} is there already"))
        found[name] = issuer
    if problems:
        raise ConfigError(problems)
    return found


def fetchable(url: str) -> bool:
    """Whether keys may come from there: https, or http on this host; nothing that hides where it leads."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or port == 0 or parts.username is not None or parts.password is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_this_host(host))


def _wrong(issuer: Issuer) -> list[str]:
    found = []
    parts = urlsplit(issuer.issuer)
    if not fetchable(issuer.issuer) or parts.query or not issuer.issuer.isascii() or not issuer.issuer.isprintable():
        found.append(f"issuer: {issuer.issuer!r} is no https:// address without user, query and fragment")
    if issuer.jwks_uri and not fetchable(issuer.jwks_uri):
        found.append(f"jwks_uri: {issuer.jwks_uri!r} is no https:// address")
    if issuer.jwks_uri and issuer.jwks_file:
        found.append("jwks_uri and jwks_file: only one can say where the keys are")
    unknown = [name for name in issuer.algorithms if name not in ALGORITHMS]
    if unknown:
        found.append(f"algorithms: {', '.join(unknown)} is none of {', '.join(ALGORITHMS)}")
    return found
