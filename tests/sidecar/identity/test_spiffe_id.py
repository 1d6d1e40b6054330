"""SPIFFE ids: what the standard allows and nothing else."""

from __future__ import annotations

import pytest

from knhk_sidecar.identity.spiffe_id import InvalidSpiffeId, SpiffeId, TrustDomain


@pytest.mark.parametrize(
    "text",
    ["spiffe://a/b", "spiffe://example.org/ns/default/sa/web", "spiffe://a-b_c.1/A-Z_9.x", f"spiffe://a/{'p' * 2030}"],
)
def test_a_workload_has_a_domain_and_a_path(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://a",
        "spiffe://a/",
        "spiffe:///p",
        "http://a/b",
        "SPIFFE://a/b",
        "spiffe://A/b",
        "spiffe://a/b/",
        "spiffe://a//b",
        "spiffe://a/./b",
        "spiffe://a/../b",
        "spiffe://a/x/../admin",
        "spiffe://a/%61",
        "spiffe://a/b?query",
        "spiffe://a/b#fragment",
        "spiffe://user@a/b",
        "spiffe://a:443/b",
        "spiffe://a/b c",
        "spiffe://a/b\n",
        "spiffe://a/ü",
        "spiffe://" + "a" * 256 + "/b",
        "spiffe://a/" + "p" * 3000,
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text)


def test_a_trust_domain_is_written_with_or_without_its_scheme() -> None:
    assert TrustDomain.parse("spiffe://a.org") == TrustDomain.parse("a.org")
    for text in ("", "A.org", "a.org/x", "a:1"):
        with pytest.raises(InvalidSpiffeId):
            TrustDomain.parse(text)
