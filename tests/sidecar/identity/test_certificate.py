"""The leaf check: certificates that TLS alone accepts, one table of those that may call and those that may not."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from knhk_sidecar.identity.certificate import Bundles, LeafCheck, RefusedCertificate, parse_leaf
from knhk_sidecar.identity.spiffe_id import TrustDomain
from tests.sidecar.identity.authority import Authority, Wish

OWN = TrustDomain("a.org")
FEDERATED = TrustDomain("b.org")
SIGN = ("digital_signature",)

GOOD = {
    "a proper X509-SVID": Wish(),
    "with DNS names too": Wish(dns=("localhost", "web.a.org")),
    "without basic constraints": Wish(authority=None),
    "without extended key usage": Wish(purposes=None),
    "with key encipherment": Wish(usage=("digital_signature", "key_encipherment")),
    "with one more purpose": Wish(
        purposes=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.TIME_STAMPING)
    ),
}

BAD = {
    "two URI names": (Wish(uris=("spiffe://a.org/web", "spiffe://a.org/admin")), "2 URI names"),
    "the same URI twice": (Wish(uris=("spiffe://a.org/web", "spiffe://a.org/web")), "2 URI names"),
    "no alternative name": (Wish(uris=()), "no subject alternative name"),
    "DNS names only": (Wish(uris=(), dns=("web.a.org",)), "0 URI names"),
    "http URI": (Wish(uris=("http://a.org/web",)), "does not begin with spiffe"),
    "no path": (Wish(uris=("spiffe://a.org",)), "no path"),
    "root path": (Wish(uris=("spiffe://a.org/",)), "no path"),
    "authority": (Wish(authority=True), "is an authority"),
    "keyCertSign": (Wish(usage=("digital_signature", "key_cert_sign")), "may sign certificates"),
    "cRLSign": (Wish(usage=("digital_signature", "crl_sign")), "may sign certificates"),
    "no key usage": (Wish(usage=None), "no key usage"),
    "key usage not critical": (Wish(usage_critical=False), "not critical"),
    "no digitalSignature": (Wish(usage=("key_encipherment",)), "may not sign"),
    "serverAuth only": (Wish(purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)), "extended key usage"),
    "clientAuth only": (Wish(purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,)), "extended key usage"),
    "neither purpose": (Wish(purposes=(ExtendedKeyUsageOID.CODE_SIGNING,)), "extended key usage"),
    "upper-case domain": (Wish(uris=("spiffe://A.org/web",)), "malformed trust domain"),
    "dots in the path": (Wish(uris=("spiffe://a.org/x/../admin",)), "malformed path"),
    "percent encoding": (Wish(uris=("spiffe://a.org/%61",)), "malformed path"),
    "query": (Wish(uris=("spiffe://a.org/web?role=admin",)), "malformed path"),
    "fragment": (Wish(uris=("spiffe://a.org/web#admin",)), "malformed path"),
    "user info": (Wish(uris=("spiffe://admin@a.org/web",)), "malformed trust domain"),
    "port": (Wish(uris=("spiffe://a.org:443/web",)), "malformed trust domain"),
    "trailing slash": (Wish(uris=("spiffe://a.org/web/",)), "malformed path"),
    "3,000 bytes": (Wish(uris=("spiffe://a.org/" + "w" * 3000,)), "longer than 2048"),
    "another trust domain": (Wish(uris=("spiffe://c.org/web",)), "may not call here"),
    "ended": (Wish(begins=timedelta(hours=-2), ends=timedelta(hours=-1)), "has expired"),
    "not begun": (Wish(begins=timedelta(minutes=30)), "not valid yet"),
}


@pytest.fixture(scope="module")
def own() -> Authority:
    return Authority("own")


@pytest.fixture(scope="module")
def federated() -> Authority:
    return Authority("federated")


@pytest.fixture(scope="module")
def alone(own: Authority) -> Bundles:
    return Bundles.parse({OWN: own.pem})


@pytest.fixture(scope="module")
def both(own: Authority, federated: Authority) -> Bundles:
    return Bundles.parse({OWN: own.pem, FEDERATED: federated.pem})


@pytest.mark.parametrize("case", GOOD)
def test_may_call(case: str, own: Authority, alone: Bundles, both: Bundles) -> None:
    pem, _ = own.issue(GOOD[case])
    for bundles in (alone, both):
        assert str(parse_leaf(pem, bundles, time.time()).spiffe_id) == "spiffe://a.org/web"


@pytest.mark.parametrize("case", BAD)
def test_may_not_call(case: str, own: Authority, alone: Bundles, both: Bundles) -> None:
    wish, problem = BAD[case]
    pem, _ = own.issue(wish)
    for bundles in (alone, both):
        with pytest.raises(RefusedCertificate, match=problem):
            parse_leaf(pem, bundles, time.time())


def test_an_authority_vouches_for_its_own_trust_domain_only(
    own: Authority, federated: Authority, both: Bundles
) -> None:
    now = time.time()
    theirs, _ = federated.issue(Wish(uris=("spiffe://b.org/web",)))
    assert str(parse_leaf(theirs, both, now).spiffe_id) == "spiffe://b.org/web"
    forged, _ = federated.issue(Wish(uris=("spiffe://a.org/admin",)))
    with pytest.raises(RefusedCertificate, match=r"not signed by an authority of a\.org"):
        parse_leaf(forged, both, now)
    reverse, _ = own.issue(Wish(uris=("spiffe://b.org/admin",)))
    with pytest.raises(RefusedCertificate, match=r"not signed by an authority of b\.org"):
        parse_leaf(reverse, both, now)


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"x" * 20_000])
def test_what_is_no_certificate_is_refused(pem: bytes, alone: Bundles) -> None:
    with pytest.raises(RefusedCertificate):
        parse_leaf(pem, alone, time.time())


def test_a_known_leaf_still_ends(own: Authority, alone: Bundles) -> None:
    now = time.time()
    check = LeafCheck(alone, lambda: now)
    pem, _ = own.issue()
    first = check.check(pem)
    assert check.check(pem) is first
    now = first.not_after + 1
    with pytest.raises(RefusedCertificate, match="has expired"):
        check.check(pem)


def test_new_bundles_count_for_known_leaves_too(own: Authority, federated: Authority, both: Bundles) -> None:
    check = LeafCheck(both)
    pem, _ = federated.issue(Wish(uris=("spiffe://b.org/web",)))
    check.check(pem)
    check.replace(Bundles.parse({OWN: own.pem}))
    with pytest.raises(RefusedCertificate, match="may not call here"):
        check.check(pem)
