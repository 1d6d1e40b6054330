"""Hosts in addresses."""

from __future__ import annotations

import ipaddress


def is_this_host(host: str) -> bool:
    """Whether what is sent to a host never leaves this one (or its pod): `localhost` and the loopback addresses,
    IPv6 ones without brackets. No name is resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
