"""Every command and program of the README works as printed there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from knhk_sidecar.config import load
from knhk_sidecar.identity.oidc import read_issuers
from knhk_workflow.model.document import strict_yaml
from knhk_workflow.model.parse import parse_spec
from tests.readme.tables import README
from tests.readme.walk import Block, Walk, adjacent, blocks, matches, stand_in

RUN = ("python", "sh")
SAMPLES = ("toml", "yaml")


@contextmanager
def walking(directory: Path) -> Iterator[Walk]:
    """A reader in a directory of its own."""
    (directory / "bin").mkdir(parents=True)
    (directory / "here").mkdir()
    walk = Walk(directory / "here", directory / "bin")
    try:
        yield walk
    finally:
        walk.close()


@pytest.mark.long
def test_the_readme_does_what_it_says(tmp_path: Path) -> None:
    document = README.read_text(encoding="utf-8")
    found = [block for block in blocks(document) if block.language]
    assert {block.language for block in found} == {*RUN, "text", *SAMPLES}
    with walking(tmp_path) as walk:
        for position, block in enumerate(found):
            if block.language not in RUN:
                continue
            printed = walk.run(block)
            after = found[position + 1] if position + 1 < len(found) else block
            if after.language == "text" and adjacent(document, block, after):
                assert matches(after.text, printed), f"README.md:{after.line} is not what was printed:\n{printed}"


def test_its_samples_are_valid(tmp_path: Path) -> None:
    found = [block for block in blocks(README.read_text(encoding="utf-8")) if block.language in SAMPLES]
    assert {block.language for block in found} == set(SAMPLES)
    for block in found:
        if block.language == "toml":
            file = tmp_path / "sidecar.toml"
            file.write_text(block.text)
            config = load(file=str(file), environ={}).config
            if config.issuers_file:
                assert read_issuers(config.issuers_file)
        else:
            tasks = cast("dict[str, object]", strict_yaml(block.text))
            (task,) = tasks
            flows = [{"from": "start", "to": task}, {"from": task, "to": "end"}]
            parse_spec({"id": "sample", "tasks": tasks, "flows": flows})


@pytest.mark.long
def test_reflection_serves_a_second_independent_client(tmp_path: Path) -> None:
    grpcurl = f'"{stand_in(tmp_path)}/grpcurl"'
    with walking(tmp_path / "walk") as walk:
        walk.run(Block("sh", "knhk dev", 0))
        listed = walk.run(Block("sh", f"{grpcurl} -plaintext 127.0.0.1:50052 list", 0))
        assert "knhk.sidecar.v1.CaseService" in listed.split()
        told = "-cacert ca.pem -cert client.pem -key client.key -servername localhost"
        method = "127.0.0.1:50051 knhk.sidecar.v1.AdminService/GetStatus"
        status = walk.run(
            Block("sh", f"cd workflow_db-dev; {grpcurl} {told} -d '{{\"omit_document_schema\": true}}' {method}", 0)
        )
        assert '"version"' in status


def test_what_may_stand_for_anything() -> None:
    assert matches("a\n...\nd\n", "a\nb\nc\nd\n")
    assert matches("a\n...\nd\n", "a\nd")
    assert matches('{"id":"...","x":1,...\n', '{"id":"7","x":1,"y":[]}')
    assert not matches("a\n", "a\nb\n")
    assert not matches("a ... c\n", "a b\n")
