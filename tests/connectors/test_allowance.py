"""Where connectors may call: by name, and by address."""

from __future__ import annotations

import json

import pytest

from knhk_workflow import Allowance, CallFailed, ConnectorSetup, InvalidInput
from tests.connectors.calling import calls, engine, setup, until_open


@pytest.mark.parametrize(
    ("pattern", "permitted", "refused"),
    [
        (
            "https://api.example.org",
            ["https://api.example.org:443"],
            [
                "http://api.example.org:80",
                "https://api.example.org:8443",
                "https://api.example.org.evil.net:443",
                "https://xapi.example.org:443",
            ],
        ),
        (
            "https://*.example.org:*",
            ["https://a.example.org:8443", "https://a.b.example.org:443", "https://A.Example.org.:443"],
            ["https://example.org:443", "https://evilexample.org:443"],
        ),
        ("*://10.0.0.7:80", ["http://10.0.0.7:80", "grpc://10.0.0.7:80"], ["http://10.0.0.70:80"]),
        ("http://[::1]:8080", ["http://::1:8080"], ["http://::2:8080"]),
        ("https://*", ["https://anything.at.all:443"], ["http://anything.at.all:443", "https://x:444"]),
    ],
)
def test_names(pattern: str, permitted: list[str], refused: list[str]) -> None:
    allowance = Allowance([pattern])
    for places, expected in ((permitted, True), (refused, False)):
        for place in places:
            scheme, _, rest = place.partition("://")
            host, _, port = rest.rpartition(":")
            assert allowance.permits(scheme, host, int(port)) is expected, place


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2001:db8::1", "192.0.2.1", "198.18.0.1", "fec0::1", "64:ff9b:1::7f00:1", "192.0.0.192", "168.63.129.16",
        "::ffff:168.63.129.16", "::127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not Allowance(["*://*:*"]).permits_address(address)


def test_networks_that_are_listed_are_permitted_and_no_others() -> None:
    allowance = Allowance(["*://*:*"], ["127.0.0.0/8", "fd00::/8"])
    assert [allowance.permits_address(each) for each in ("127.0.0.1", "::ffff:127.0.0.1", "fd00::1", "8.8.8.8")] == [
        True
    ] * 4
    assert [allowance.permits_address(each) for each in ("10.0.0.1", "::1", "169.254.169.254")] == [False] * 3


async def test_what_is_no_name_is_refused_for_good() -> None:
    for name in ("a..b", "x" * 64 + ".org"):
        with pytest.raises(CallFailed) as failed:
            await Allowance(["*://*:*"]).addresses(name, 80)
        assert failed.value.permanent


async def test_a_name_with_one_bad_address_is_refused() -> None:
    with pytest.raises(CallFailed, match="not a public address"):
        await Allowance(["*://*:*"]).addresses("localhost", 80)
    assert "127.0.0.1" in await Allowance(["*://*:*"], ["127.0.0.0/8", "::1/128"]).addresses("localhost", 80)


@pytest.mark.parametrize("text", ["example.org", "https://", "https://a*b.org", "http://x:port", "http://x:99999"])
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput):
        Allowance([text])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x",
        "http://localhost:1/",
        "http://2130706433:1/",
        "http://0x7f.1:1/",
        "http://[::ffff:127.0.0.1]:1/",
        "http://169.254.169.254/latest/meta-data",
        "http://user:pass@example.org/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:1/",
        "//127.0.0.1:1/",
        "http://127.0.0.1\\@example.org/",
    ],
)
async def test_nothing_is_called_that_is_not_on_the_list(url: str) -> None:
    """With a list that permits public names, what leads inside is refused before anything is sent."""
    connectors = setup("http://example.invalid")
    whole = ConnectorSetup(
        configured=tuple(each.__class__(each.name, each.kind, b"{}") for each in connectors.configured),
        allow=("http://*:*", "https://*:*"),
    )
    async with engine(whole) as opened:
        document = calls({"request": {"url": "${data.url}"}, "retry": 1})
        document["tasks"] = {"call": {"connector": "http", "request": {"url": url}, "retry": 1}}
        await opened.register_workflow(document)
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        codes = ("not_allowed: ", "bad_request: ", "unresolved: ")
        assert any(code in case.incidents[0].message for code in codes), case.incidents[0].message


async def test_data_cannot_choose_another_host(outside: str) -> None:
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(
            calls({"request": {"url": "/echo/${data.x}"}, "result": {"path": "data.body.path"}})
        )
        case = await opened.wait_case((await opened.run_case("calls", {"x": "../../@evil.org/?#"})).case_id)
        assert json.loads(case.data)["path"] == "/echo/..%2F..%2F%40evil.org%2F%3F%23"


async def test_a_connector_may_be_narrower_than_the_daemon(outside: str) -> None:
    async with engine(setup(outside, allow=["http://127.0.0.1:1"])) as opened:
        await opened.register_workflow(calls({"request": {"url": "/echo"}, "retry": 1}))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert "not_allowed: " in case.incidents[0].message
