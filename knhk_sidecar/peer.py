"""Who a daemon is: its SPIFFE id, checked so that the connection itself is bound to it.

gRPC for Python compares DNS names; it does not look at the id in a server's certificate. So a handshake of our own
comes first: what the server shows is verified against the authorities of the expected trust domain and judged like any
X509-SVID. The channel that is made then trusts this one certificate and no authority, at the address that answered:
whoever answers there later has its key, or the connection fails. A server with another certificate is checked anew.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from knhk_sidecar.client import Endpoint, NotReachable, WrongServer
from knhk_sidecar.credentials import Shown
from knhk_sidecar.identity.certificate import Bundles, RefusedCertificate, authorities_for_ssl, parse_leaf
from knhk_sidecar.identity.spiffe_id import InvalidSpiffeId, SpiffeId, TrustDomain

CHECK_SECONDS: Final = 5.0  # for the handshake that asks who the server is: the daemon's own limit for one
_SCHEME: Final = "spiffe://"


@dataclass(frozen=True, slots=True)
class Server:
    """One that was checked: the address that answered, its certificate (PEM), and a name in it for gRPC to compare."""

    target: str
    certificate: bytes
    name: str


def checked(endpoint: Endpoint, expected: str, shown: Shown) -> Server:
    """Asks who is there. `expected` is a SPIFFE id, or `spiffe://` and a trust domain whose workloads all will do."""
    domain, wanted = _expectation(expected)
    bundle = shown.authorities(domain)
    target, pem = _handshake(endpoint, bundle, shown)
    try:
        found = parse_leaf(pem, Bundles.parse({domain: bundle}), time.time()).spiffe_id
    except RefusedCertificate as refused:
        raise WrongServer(
            f"the certificate of the server at {endpoint.address} {refused}", f"it has to be an X509-SVID of {domain}"
        ) from refused
    if wanted is not None and found != wanted:
        raise WrongServer(
            f"the server at {endpoint.address} is {found}, not {wanted}", "check the address, or the expected id"
        )
    return Server(target, pem, _name(endpoint, x509.load_pem_x509_certificate(pem)))


def _expectation(expected: str) -> tuple[TrustDomain, SpiffeId | None]:
    try:
        if "/" in expected.removeprefix(_SCHEME):
            wanted = SpiffeId.parse(expected)
            return wanted.trust_domain, wanted
        return TrustDomain.parse(expected), None
    except InvalidSpiffeId as error:
        raise NotReachable(
            f"the server's id {expected!r} {error}", "give an id, or spiffe:// and a trust domain"
        ) from error


def _handshake(endpoint: Endpoint, bundle: bytes, shown: Shown) -> tuple[str, bytes]:
    """The address that answered and what it has shown. TLS verifies the chain, its ends, and its constraints."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the id is checked
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the authorities of a bundle need not be self-signed
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=authorities_for_ssl(bundle))
        _show(context, shown)
        with _connected(endpoint.address) as (connection, target):
            name = endpoint.server_name or None
            with context.wrap_socket(connection, server_hostname=name) as secured:
                der = secured.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        raise WrongServer(
            f"the certificate of the server at {endpoint.address} cannot be verified: {error.verify_message}",
            "check the address and the authorities",
        ) from error
    except (OSError, ValueError) as error:
        raise NotReachable(f"no answer from {endpoint.address}: {error}", "is the daemon running?") from error
    assert der is not None, "a server without certificate does not pass the verification"
    return target, ssl.DER_cert_to_PEM_cert(der).encode()


def _show(context: ssl.SSLContext, shown: Shown) -> None:
    """Our own certificate, so that the server has nothing to complain about. The library reads keys from files only;
    where there are none in memory, a TLS 1.3 server is asked without."""
    if shown.cert is None or shown.key is None or not hasattr(os, "memfd_create"):
        return
    descriptor = os.memfd_create("svid")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(shown.key + b"\n" + shown.cert)
        stream.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


@contextlib.contextmanager
def _connected(address: str) -> Iterator[tuple[socket.socket, str]]:
    """A connection, and the gRPC target of exactly that peer: a name may stand for several."""
    if address.startswith("unix:"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CHECK_SECONDS)
            connection.connect(address.removeprefix("unix:").removeprefix("//"))
            yield connection, address
        return
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("the address has to be host:port or unix:path")
    with socket.create_connection((host.strip("[]"), int(port)), CHECK_SECONDS) as connection:
        peer = connection.getpeername()
        yield connection, f"[{peer[0]}]:{peer[1]}" if connection.family == socket.AF_INET6 else f"{peer[0]}:{peer[1]}"


def _name(endpoint: Endpoint, leaf: x509.Certificate) -> str:
    """A name of the certificate that gRPC can compare: it insists on one, though only this certificate is trusted."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    if endpoint.server_name:
        if endpoint.server_name not in names:
            raise WrongServer(
                f"the certificate of the server at {endpoint.address} is for {', '.join(names) or 'no DNS name'}, "
                f"not for {endpoint.server_name}",
                "leave the server's name out: its id is checked",
            )
        return endpoint.server_name
    common = [each.value for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    for name in (*names, *([] if names else common)):
        if name:
            return str(name).replace("*", "any", 1)
    raise WrongServer(
        f"the certificate of the server at {endpoint.address} has no DNS name, and gRPC for Python wants one",
        "give the daemon's entry a DNS name (`spire-server entry create ... -dns`)",
    )
