"""Tasks that a connector does, over HTTP, against a server of another process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from knhk_workflow import CallMeta, InvalidDocument, InvalidInput, StoreCorrupt
from knhk_workflow.connectors import http
from tests.connectors.calling import calls, data, engine, held, history, release, setup, until_open
from tests.connectors.conftest import Started
from tests.inside import parts
from tests.runtime.place import damage

AT_ONCE = {"max_attempts": 3, "backoff": 0}


async def test_a_request_is_made_of_case_data_and_the_answer_becomes_case_data(outside: str) -> None:
    task = {
        "request": {
            "method": "PUT",
            "url": "/echo/${data.order}/lines",
            "query": {"q": "${data.order}", "n": 3},
            "headers": {"X-Total": "${data.total}"},
            "body": "{'order': data.order, 'twice': data.total * 2}",
        },
        "result": {"path": "data.body.path", "status": "data.status", "said": "data.body"},
    }
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task))
        case = await opened.run_case("calls", {"order": "a/b?c=1", "total": 7})
        case = await opened.wait_case(case.case_id)
        assert case.state == "completed"
        found = data(case)
        said = found["said"]
        assert isinstance(said, dict)
        assert (found["path"], found["status"]) == ("/echo/a%2Fb%3Fc%3D1/lines", 200)
        assert said["body"] == {"order": "a/b?c=1", "twice": 14}
        assert said["query"] == {"q": "a/b?c=1", "n": "3"}
        assert (said["method"], said["headers"]["x-total"]) == ("PUT", "7")
        kinds = [event.event_type for event in await history(opened, case.case_id)]
        assert [kind for kind in kinds if kind.startswith(("item", "connector"))] == [
            "item_offered",
            "connector_called",
            "connector_completed",
        ]


async def test_without_result_the_members_of_the_answer_are_merged(outside: str) -> None:
    task = {"request": {"url": "/effects", "method": "POST", "body": "{'x': data.x}"}}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task))
        case = await opened.wait_case((await opened.run_case("calls", {"x": 5, "kept": True})).case_id)
        assert data(case) == {"x": 5, "kept": True, "number": 1, "seen": 1}


async def test_a_task_with_a_request_and_no_connector_is_for_the_default_one(outside: str) -> None:
    document = calls({"request": {"url": "/text"}})
    document["tasks"] = {"call": {"request": {"url": "/text"}}}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(document)
        case = await opened.wait_case((await opened.run_case("calls")).case_id)
        assert data(case) == {"call": "plain"}


async def test_what_fails_for_a_while_is_tried_again_under_the_same_key(outside: str) -> None:
    task = {"request": {"url": "/status/503", "method": "POST"}, "retry": AT_ONCE}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert [incident.kind for incident in case.incidents] == ["connector_failed"]
        assert "http_503" in case.incidents[0].message
        events = [event.event_type for event in await history(opened, case.case_id)]
        assert events.count("connector_called") == events.count("connector_failed") == 3


async def test_what_would_fail_again_is_not_tried_again(outside: str) -> None:
    task = {"request": {"url": "/status/422", "method": "POST"}, "retry": AT_ONCE}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        events = await history(opened, case.case_id)
        failed = [json.loads(event.data) for event in events if event.event_type == "connector_failed"]
        assert len(failed) == 1
        assert failed[0]["data"]["status"] == 422


async def test_a_status_can_be_an_answer(outside: str) -> None:
    task = {"request": {"url": "/status/404", "accept": [404]}, "result": {"there": "data.status != 404"}}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task))
        case = await opened.wait_case((await opened.run_case("calls")).case_id)
        assert data(case) == {"there": False}


async def test_an_error_flow_is_taken_when_attempts_are_spent(outside: str) -> None:
    document = calls({"request": {"url": "/status/500"}, "retry": AT_ONCE, "on_error": "mend", "split": "xor"})
    document["tasks"] |= {"mend": {}}  # type: ignore[operator]  # a plain document
    document["flows"] += [  # type: ignore[operator]
        {"from": "call", "to": "mend", "when": "false"},
        {"from": "mend", "to": "end"},
    ]
    document["flows"][1]["default"] = True  # type: ignore[index]
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(document)
        case = await opened.wait_case((await opened.run_case("calls")).case_id)
        assert case.state == "completed"
        assert "mend" in str(await history(opened, case.case_id))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("/reset", "connection_lost"),
        ("/slow/30", "timeout"),
        ("/large/2000000", "response_too_large"),
        ("/redirect?to=http://127.0.0.1:1/", "redirect_refused"),
    ],
)
async def test_a_failure_says_what_it_was(outside: str, url: str, code: str) -> None:
    async with engine(setup(outside, timeout=0.5 if code == "timeout" else 60)) as opened:
        await opened.register_workflow(calls({"request": {"url": url}, "retry": 1}))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert f"{code}: " in case.incidents[0].message


async def test_secrets_are_sent_and_never_recorded(outside: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("very-secret-token\n")
    connectors = setup(
        outside,
        environ={"BILLING_KEY": "another-secret"},
        auth={"bearer": {"file": str(file)}},
        headers={"X-Api-Key": {"env": "BILLING_KEY"}, "X-Plain": "p"},
    )
    task = {"request": {"url": "/echo"}, "result": {"said": "data.body.headers"}}
    async with engine(connectors) as opened:
        await opened.register_workflow(calls(task))
        case = await opened.wait_case((await opened.run_case("calls")).case_id)
        said = data(case)["said"]
        assert isinstance(said, dict)
        assert (said["authorization"], said["x-api-key"], said["x-plain"]) == ("Bearer ********", "********", "p")
        whole = str(await history(opened, case.case_id)) + str(await opened.list_connectors())
        assert "very-secret" not in whole
        assert "another-secret" not in whole


async def test_a_secret_that_cannot_be_sent_is_not_told(outside: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("very-secret\ntoken ")
    async with engine(setup(outside, auth={"bearer": {"file": str(file)}})) as opened:
        await opened.register_workflow(calls({"request": {"url": "/echo"}}))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert "bad_request: " in case.incidents[0].message
        assert "very-secret" not in str(await history(opened, case.case_id)) + str(case)


async def test_a_secret_in_a_header_that_the_server_repeats_is_taken_out(outside: str) -> None:
    task = {"request": {"url": "/repeats", "accept": [404]}, "result": {"seen": "data.headers"}}
    connectors = setup(
        outside, environ={"KEY": "another-secret"}, headers={"X-Key": {"env": "KEY"}}, response_headers=["x-seen"]
    )
    async with engine(connectors) as opened:
        await opened.register_workflow(calls(task))
        assert data(await opened.wait_case((await opened.run_case("calls")).case_id))["seen"] == {"x-seen": "********"}


async def test_credentials_go_to_nobody_but_the_base(outside: str, start_outside: Started) -> None:
    other = f"http://127.0.0.1:{start_outside()}"
    connectors = setup(outside, environ={"KEY": "another-secret"}, auth={"bearer": {"env": "KEY"}})
    connectors = dataclasses.replace(connectors, allow=("http://127.0.0.1:*",))
    async with engine(connectors) as opened:
        await opened.register_workflow(calls({"request": {"url": f"{other}/effects"}}))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert "credentials are for" in case.incidents[0].message
    with pytest.raises(InvalidInput, match="base_url"):
        async with engine(setup(outside, base_url="", auth={"bearer": {"env": "KEY"}})):
            pass


async def test_files_of_a_connector_that_is_put_lie_where_its_secrets_do(outside: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "key.pem").write_text("daemon's own")
    connectors = dataclasses.replace(setup(outside), secrets_directory=str(tmp_path / "mine"))
    async with engine(connectors) as opened:
        for file in (str(tmp_path / "key.pem"), "../key.pem"):
            with pytest.raises(InvalidInput, match="must lie in the directory"):
                await opened.put_connector("x", "http", {"base_url": outside, "tls": {"cert": file}})


async def test_who_waits_for_a_connection_does_not_blame_the_other_side(
    outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "PLACE_SHARE", 0.005)  # 0.3 s for a connection, a minute for the answer
    connectors = setup(outside, timeout=60, pool={"size": 1}, breaker={"failures": 1})
    async with engine(connectors) as opened:
        await opened.register_workflow(calls({"request": {"url": "/hold/one"}, "retry": 1}))
        cases = [(await opened.run_case("calls")).case_id for _ in range(3)]
        async with asyncio.timeout(60):
            while len((await opened.list_dead_letters()).items) < 2:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
        await release(outside, "one")
        ended = [await until_open(opened, case_id) for case_id in cases]
        assert [case.state for case in ended].count("completed") == 1
        assert all("pool_timeout: " in case.incidents[0].message for case in ended if case.incidents)
        assert (await opened.list_connectors())[0].breakers == ((outside, "closed"),)


async def test_a_missing_secret_is_a_failure_that_names_it(outside: str) -> None:
    async with engine(setup(outside, auth={"bearer": {"env": "NOT_THERE"}})) as opened:
        await opened.register_workflow(calls({"request": {"url": "/echo"}, "retry": 1}))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert "no_credentials: the variable NOT_THERE is not set" in case.incidents[0].message


async def test_an_answer_that_cannot_be_used_is_shown_to_a_person_and_not_asked_for_again(outside: str) -> None:
    task = {"request": {"url": "/effects", "method": "POST", "body": "1"}, "result": {"x": "data.body.absent"}}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert "result_error" in case.incidents[0].message
        case = await opened.resolve_incident(case.incidents[0].incident_id, "complete", {"x": 1})
        assert (case.state, data(case)) == ("completed", {"x": 1})


async def test_an_answer_that_cannot_be_used_is_not_quoted_where_it_is_sensitive(outside: str) -> None:
    task = {
        "request": {"url": "/echo", "method": "POST", "body": "{'token': data.first + data.second}"},
        "result": {"x": "data.body.headers[data.body.body.token]"},
    }
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task, sensitive=["token"]))
        begun = await opened.run_case("calls", {"first": "4111-2222", "second": "-3333"})
        case = await until_open(opened, begun.case_id)
        assert "result_error" in case.incidents[0].message
        assert "-2222-3333" not in f"{case.incidents} {await history(opened, case.case_id)}"


async def test_a_request_that_cannot_be_evaluated_is_an_incident_that_a_retry_mends(outside: str) -> None:
    task = {"request": {"url": "/echo", "body": "data.missing"}, "result": {"x": "data.body.body"}}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task))
        case = await opened.run_case("calls")
        assert case.incidents[0].kind == "input_error"
        await opened.update_case_data(case.case_id, {"missing": 3})
        await opened.resolve_incident(case.incidents[0].incident_id, "retry")
        case = await opened.wait_case(case.case_id)
        assert data(case) == {"missing": 3, "x": 3}


async def test_dead_letters_are_listed_retried_and_discarded(outside: str) -> None:
    task = {"request": {"url": "${data.url}", "method": "POST"}, "retry": 1, "result": {"n": "data.status"}}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls({**task, "request": {"url": "/status/${data.n}", "method": "POST"}}))
        first = (await opened.run_case("calls", {"n": 500}, case_id="a")).case_id
        second = (await opened.run_case("calls", {"n": 422}, case_id="b")).case_id
        for case_id in (first, second):
            await until_open(opened, case_id)
        letters = (await opened.list_dead_letters()).items
        assert [(each.case_id, each.task_id, each.connector, each.attempts, each.code) for each in letters] == [
            ("a", "call", "http", 1, "http_500"),
            ("b", "call", "http", 1, "http_422"),
        ]
        assert json.loads(letters[0].request)["url"] == "/status/500"
        await opened.update_case_data("a", {"n": 201})
        again = await opened.retry_dead_letter(letters[0].dead_letter_id, meta=CallMeta(request_id="r1"))
        assert again.status == "retrying"
        assert (await opened.retry_dead_letter(letters[0].dead_letter_id, meta=CallMeta(request_id="r1"))).status
        assert data(await opened.wait_case("a")) == {"n": 201}
        assert (await opened.discard_dead_letter(letters[1].dead_letter_id)).status == "discarded"
        assert (await opened.wait_case("b")).state == "completed"
        assert (await opened.list_dead_letters()).items == ()


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
async def test_dead_letters_of_one_connector_in_pages(outside: str, page_size: int) -> None:
    """Pages are full as long as there are more: who wants so many lines gets them, and the token goes on behind."""
    task = {"connector": "other", "request": {"url": "/status/422", "method": "POST"}, "retry": 1}
    async with engine(setup(outside)) as opened:
        await opened.put_connector("other", "http", {"base_url": outside})
        await opened.register_workflow(calls(task))
        await opened.register_workflow({**calls({**task, "connector": "http"}), "id": "more"})
        for number in range(12):
            await opened.run_case("calls" if number % 3 == 1 else "more", case_id=f"k{number:02d}")
            await until_open(opened, f"k{number:02d}")
        for connector, expected in (("other", [1, 4, 7, 10]), ("", list(range(12))), ("nobody", [])):
            found: list[str] = []
            sizes: list[int] = []
            token = ""
            while token or not sizes:
                page = await opened.list_dead_letters(connector=connector, page_size=page_size, page_token=token)
                found += [each.case_id for each in page.items]
                token = page.next_token
                sizes.append(len(page.items))
            assert found == [f"k{number:02d}" for number in expected]
            assert sizes[:-1] == [page_size] * (len(sizes) - 1)
        first = await opened.list_dead_letters(connector="other", page_size=1)
        with pytest.raises(InvalidInput):
            await opened.list_dead_letters(page_token=first.next_token)


async def test_dead_letters_of_a_damaged_case_hide_no_others(outside: str, tmp_path: Path) -> None:
    async with engine(setup(outside), tmp_path / "store") as opened:
        await opened.register_workflow(calls({"request": {"url": "/status/422", "method": "POST"}, "retry": 1}))
        for case_id in ("a", "b", "c"):
            await opened.run_case("calls", case_id=case_id)
            await until_open(opened, case_id)
    async with engine(setup(outside), tmp_path / "store") as opened:
        await damage(opened, parts(opened).keyspace.case_record("default", "b", 1))
        assert [each.case_id for each in (await opened.list_dead_letters()).items] == ["a", "c"]
        assert [each.case_id for each in (await opened.list_incidents()).items] == ["a", "b", "c"]
        assert (await opened.count()).dead_letters == 3
        await damage(opened, parts(opened).keyspace.case("default", "c").incident(1))
        assert (await opened.count()).dead_letters == 2
        with pytest.raises(StoreCorrupt):
            await opened.retry_dead_letter("1@b")


async def test_a_late_result_of_cancelled_work_is_recorded_as_discarded(outside: str) -> None:
    document = calls({"request": {"url": "/hold/late"}})
    document["tasks"] |= {"wait": {"required_roles": ["clerk"]}}  # type: ignore[operator]
    document["flows"] += [{"from": "start", "to": "wait"}, {"from": "wait", "to": "end"}]  # type: ignore[operator]
    document["flows"] = [
        {"from": "start", "to": "fork"},
        {"from": "fork", "to": "call"},
        {"from": "fork", "to": "wait"},
        {"from": "call", "to": "end"},
        {"from": "wait", "to": "end"},
    ]
    document["tasks"] |= {"fork": {}}  # type: ignore[operator]
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(document, allow_unsound=True)
        case = await opened.run_case("calls")
        await held(outside, "late")
        await opened.cancel_task(case.case_id, "call")
        await release(outside, "late")
        async for event in opened.watch_case(case.case_id):
            if event.event_type == "connector_discarded":
                assert json.loads(event.data)["outcome"] == "200"
                break


async def test_texts_that_do_not_compile_refuse_the_workflow(outside: str) -> None:
    async with engine(setup(outside)) as opened:
        for request, path in (
            ({"url": "/x/${data.}"}, "tasks.call.request.url"),
            ({"body": "data.("}, "tasks.call.request.body"),
            ({"headers": {"x": "${data.a"}}, "tasks.call.request.headers.x"),
        ):
            with pytest.raises(InvalidDocument) as refused:
                await opened.register_workflow(calls({"request": request}))
            assert [problem.path for problem in refused.value.problems] == [path]


async def test_an_engine_that_was_closed_takes_pending_calls_up_again(outside: str, tmp_path: Path) -> None:
    task = {"request": {"url": "/effects", "method": "POST", "body": "{'x': 1}"}}
    nowhere = setup("http://127.0.0.1:1", breaker={"failures": 1, "pause": 600})
    async with engine(nowhere, tmp_path / "db") as opened:
        await opened.register_workflow(calls({**task, "retry": {"max_attempts": 50, "backoff": 0.05}}))
        for number in range(5):
            await opened.run_case("calls", case_id=f"c{number}")
    async with engine(setup(outside), tmp_path / "db") as opened:
        for number in range(5):
            case = await opened.wait_case(f"c{number}")
            assert data(case)["seen"] == 1
        assert (await opened.verify_store()).intact
