"""The developer's authority, and TLS material that follows its files."""

from __future__ import annotations

import asyncio
import stat
import time
from datetime import timedelta
from pathlib import Path

import pytest

from knhk_sidecar.identity import dev_ca, tls
from knhk_sidecar.identity.spiffe_id import TrustDomain
from knhk_sidecar.identity.tls import FileSource, InvalidMaterial, TlsFiles
from tests.sidecar.identity.authority import Authority, Wish


def files_of(authority: dev_ca.DevAuthority, svid: dev_ca.Svid) -> TlsFiles:
    return TlsFiles(str(svid.cert), str(svid.key), str(authority.ca))


def test_keys_are_the_owners_alone(tmp_path: Path) -> None:
    authority = dev_ca.open_authority(tmp_path / "dev")
    authority.issue_server()
    authority.issue_client()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "dev").iterdir()}
    assert {name: mode for name, mode in modes.items() if name.endswith(".key")} == {
        "ca.key": 0o600,
        "server.key": 0o600,
        "client.key": 0o600,
    }
    assert set(modes) == {"ca.key", "ca.pem", "server.key", "server.pem", "client.key", "client.pem"}


def test_what_it_issues_passes_the_leaf_check(tmp_path: Path) -> None:
    authority = dev_ca.open_authority(tmp_path)
    server, client, other = (
        authority.issue_server(),
        authority.issue_client(),
        authority.issue("clerk", "/ns/a/sa/clerk"),
    )
    source = FileSource(files_of(authority, server))
    assert source.trust_domain == dev_ca.TRUST_DOMAIN
    for svid in (server, client, other):
        assert source.leaves.check(svid.cert.read_bytes()).spiffe_id == svid.spiffe_id


def test_the_authority_is_kept_until_it_does_not_fit(tmp_path: Path) -> None:
    first = dev_ca.open_authority(tmp_path)
    again = dev_ca.open_authority(tmp_path)
    assert again.certificate == first.certificate
    elsewhere = dev_ca.open_authority(tmp_path, TrustDomain("b.org"))
    assert elsewhere.certificate != first.certificate
    (tmp_path / "ca.key").write_text("half of a k")
    mended = dev_ca.open_authority(tmp_path, TrustDomain("b.org"))
    svid = mended.issue("x", "/x")
    leaves = FileSource(files_of(mended, svid)).leaves
    assert str(leaves.check(svid.cert.read_bytes()).spiffe_id) == "spiffe://b.org/x"


def test_new_files_are_taken_when_they_fit_together(tmp_path: Path) -> None:
    authority = dev_ca.open_authority(tmp_path)
    server = authority.issue_server()
    source = FileSource(files_of(authority, server))
    assert not source.refresh()
    before = source.material
    authority.issue_server()
    assert source.refresh()
    assert source.material.cert != before.cert


def test_files_that_do_not_fit_leave_the_old_ones_in_use(tmp_path: Path) -> None:
    authority = dev_ca.open_authority(tmp_path)
    server = authority.issue_server()
    source = FileSource(files_of(authority, server))
    before = source.material
    good_key = server.key.read_bytes()
    for broken in (b"", b"nonsense", authority.issue("other", "/other").key.read_bytes()):
        server.key.write_bytes(broken)
        assert not source.refresh()
        assert source.material is before
    server.key.unlink()
    assert not source.refresh()
    server.key.write_bytes(good_key)
    assert source.refresh()


def test_a_replaced_authority_counts_for_callers(tmp_path: Path) -> None:
    authority = dev_ca.open_authority(tmp_path)
    source = FileSource(files_of(authority, authority.issue_server()), TrustDomain("a.org"))
    other = Authority()
    cert, _ = other.issue(Wish())
    assert str(source.leaves.check(cert).spiffe_id) == "spiffe://a.org/web"
    authority.ca.write_bytes(other.pem)
    assert source.refresh()
    assert source.material.ca == other.pem


@pytest.mark.parametrize("which", ["cert", "key", "ca"])
def test_material_that_cannot_be_used_is_named(tmp_path: Path, which: str) -> None:
    authority = dev_ca.open_authority(tmp_path)
    server = authority.issue_server()
    paths = {"cert": server.cert, "key": server.key, "ca": authority.ca}
    paths[which].write_text("nonsense")
    with pytest.raises(InvalidMaterial, match=str(paths[which])):
        FileSource(files_of(authority, server))
    paths[which].unlink()
    with pytest.raises(InvalidMaterial, match="cannot be read"):
        FileSource(files_of(authority, server))


def test_a_certificate_without_id_needs_a_trust_domain(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.issue(Wish(uris=(), dns=("localhost",)))
    for name, content in (("c", cert), ("k", key), ("a", authority.pem)):
        (tmp_path / name).write_bytes(content)
    files = TlsFiles(str(tmp_path / "c"), str(tmp_path / "k"), str(tmp_path / "a"))
    with pytest.raises(InvalidMaterial, match="spiffe_trust_domain"):
        FileSource(files)
    source = FileSource(files, TrustDomain("a.org"))
    assert source.material.spiffe_id is None
    assert source.material.not_after > time.time()
    assert source.leaves.check(authority.issue()[0])


async def test_files_of_any_kind_do_not_end_the_following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_INTERVAL", 0.01)
    authority = dev_ca.open_authority(tmp_path)
    server = authority.issue_server()
    source = FileSource(files_of(authority, server))
    before = source.material
    following = asyncio.create_task(source.follow())

    def broken(_: object) -> None:
        raise ArithmeticError("nobody thought of this")

    with monkeypatch.context() as breaking:
        breaking.setattr(source, "adopt", broken)
        authority.issue_server()
        async with asyncio.timeout(60):
            while "nobody thought of this" not in source.problem:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
    authority.issue_server()
    async with asyncio.timeout(60):
        while source.material is before or source.problem:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)
    following.cancel()


def test_a_certificate_for_somebody_else_or_of_the_past_is_not_adopted(tmp_path: Path) -> None:
    """The id is wanted of every certificate, not of the first one only."""
    authority = Authority()
    files = TlsFiles(str(tmp_path / "c"), str(tmp_path / "k"), str(tmp_path / "a"))

    def put(wish: Wish) -> None:
        for path, content in zip((files.cert, files.key), authority.issue(wish), strict=True):
            Path(path).write_bytes(content)

    Path(files.ca).write_bytes(authority.pem)
    put(Wish())
    source = FileSource(files, None, "spiffe://a.org/web")
    before = source.material
    for wish, why in (
        (Wish(uris=("spiffe://a.org/other",)), "spiffe_id is spiffe://a.org/web"),
        (Wish(uris=(), dns=("localhost",)), "no SPIFFE id"),
        (Wish(begins=timedelta(hours=-2), ends=timedelta(hours=-1)), "has ended"),
    ):
        put(wish)
        assert not source.refresh()
        assert source.material is before
        assert why in source.problem
    put(Wish())
    assert source.refresh()
    assert source.problem == ""
    with pytest.raises(InvalidMaterial, match="spiffe_id is"):
        FileSource(files, None, "spiffe://a.org/other")
