"""The description says what is served."""

from __future__ import annotations

import re

import httpx2

from knhk_sidecar.api import pb


def test_openapi_describes_every_operation(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    described = {about["operationId"] for verbs in document["paths"].values() for about in verbs.values()}
    unary = {
        f"{service.name}_{method.name}"
        for service in pb.SERVICES
        for method in service.methods
        if not method.client_streaming
    }
    assert unary <= described
    assert {"/health", "/health/live", "/health/ready"} <= document["paths"].keys()


def test_every_reference_of_the_description_leads_somewhere(http: httpx2.Client) -> None:
    answer = http.get("/openapi.json")
    names = set(re.findall(r'"#/components/schemas/(\w+)"', answer.text))
    assert names <= answer.json()["components"]["schemas"].keys()
    assert names


def test_every_get_without_variables_answers(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path, verbs in paths.items():
        if "get" in verbs and "{" not in path and not path.endswith(":watch"):
            answer = http.get(path)
            assert answer.status_code in (200, 501), (path, answer.text)
            answer.json()


def test_the_page_needs_nothing_from_elsewhere(http: httpx2.Client) -> None:
    page = http.get("/swagger")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert http.get("/", follow_redirects=False).headers["location"] == "/swagger"
