"""Where connectors may connect: a list of what is permitted, checked by name and again by address.

By name: patterns `scheme://host:port`. The scheme is one, or `*`; the host a name, an address, `*.name` for any name
below it, or `*`; the port a number, `*`, or absent for the scheme's own. What no pattern matches is refused.

By address: what a name resolves to is looked up once, every address of it is checked, and the connection goes to a
checked address, so that a name cannot point elsewhere a moment later. Addresses that are not public (loopback, private
networks, link-local with the metadata services of clouds, IPv6 forms of all these) are refused unless `networks` lists
them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

from knhk_workflow.connectors.connector import CallFailed
from knhk_workflow.errors import InvalidInput

PORTS: Final = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443, "kafka": 9092}
REFUSED: Final = "not_allowed"

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HELD_BACK: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "fec0::/10",  # site-local (RFC 3879)
            "64:ff9b:1::/48",  # NAT64 of one network (RFC 8215)
            "192.0.0.0/24",  # protocol assignments, and a metadata service among them
            "168.63.129.16/32",  # Azure's virtual host: public by its number only
        ),
    )
)
"""Not public, whatever the address's own class says of it in some versions of Python."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class Allowance:
    """What is permitted. Immutable."""

    def __init__(self, patterns: Iterable[str] = (), networks: Iterable[str] = ()) -> None:
        """Raises InvalidInput for a pattern or network that is none."""
        self._patterns = tuple(_pattern(text) for text in patterns)
        self._networks = tuple(_network(text) for text in networks)

    def permits(self, scheme: str, host: str, port: int) -> bool:
        """Whether a call may go there by name."""
        name = host.lower().rstrip(".").strip("[]")
        return any(
            pattern_scheme in ("*", scheme)
            and pattern_port in (0, port)
            and (
                pattern_host in ("*", name)
                or (
                    pattern_host.startswith("*.") and name.endswith(pattern_host[1:]) and len(name) >= len(pattern_host)
                )
            )
            for pattern_scheme, pattern_host, pattern_port in self._patterns
        )

    def check(self, scheme: str, host: str, port: int) -> None:
        """Raises CallFailed for what is not permitted by name."""
        if not self.permits(scheme, host, port):
            raise CallFailed(
                REFUSED,
                f"{scheme}://{host}:{port} is not on the list of what connectors may call; "
                "add a pattern for it to connectors.allow",
                permanent=True,
                blame=False,
            )

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of them permitted. Raises CallFailed; one that is not permitted refuses all."""
        name = host.strip("[]")
        try:
            found = [str(ipaddress.ip_address(name))]
        except ValueError:
            try:
                infos = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
            except OSError as error:
                raise CallFailed("unresolved", f"the name {name!r} has no address: {error.strerror}") from error
            except UnicodeError as error:  # an empty label, or one of more than 63 bytes
                raise CallFailed("unresolved", f"{name!r} is no name", permanent=True, blame=False) from error
            found = list(dict.fromkeys(str(info[4][0]) for info in infos))
        for text in found:
            if not self.permits_address(text):
                raise CallFailed(
                    REFUSED,
                    f"{name!r} is at {text}, which is not a public address; list its network in connectors.networks "
                    "if it is meant",
                    permanent=True,
                    blame=False,
                )
        return found

    def permits_address(self, text: str) -> bool:
        """Whether a connection may go to an address."""
        address = ipaddress.ip_address(text.partition("%")[0])
        if any(address.version == network.version and address in network for network in self._networks):
            return True
        inner = _inner(address)
        if inner is not None:
            return self.permits_address(str(inner))
        if any(address.version == network.version and address in network for network in _HELD_BACK):
            return False
        return address.is_global and not address.is_multicast and not address.is_reserved


def _inner(address: _Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo is not None else None)


def _pattern(text: str) -> tuple[str, str, int]:
    scheme, slashes, rest = text.strip().lower().partition("://")
    rest = rest.rstrip("/")
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = rest.partition(":")
    number = 0 if port == "*" else PORTS.get(scheme, 0) if not port else int(port) if port.isdecimal() else -1
    if not slashes or not scheme or not host or not 0 <= number <= 65_535 or "*" in host.removeprefix("*"):
        raise InvalidInput.field(
            "connectors.allow", f"{text!r} is not scheme://host:port", "for example https://*.example.org:443"
        )
    return scheme, host.rstrip("."), number


def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise InvalidInput.field(
            "connectors.networks", f"{text!r} is not a network", "for example 10.0.0.0/8 or ::1/128"
        ) from None
