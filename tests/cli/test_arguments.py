"""What is wrong before anything is asked of a daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from knhk_sidecar.cli import root
from tests.cli.daemon import knhk


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command of the tree with its path."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, name
            found += commands(inner, (*path, name))
    return found


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(path, command, id=" ".join(path) or "knhk") for path, command in commands(root.knhk)],
)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    done = CliRunner().invoke(root.knhk, [*path, "--help"], prog_name="knhk")
    assert done.exit_code == 0
    assert "Example:" in done.output
    assert f"knhk {' '.join(path)}".strip() in done.output


def test_help_loads_nothing_heavy() -> None:
    """Help and completion stay fast because neither gRPC nor the engine nor tables are imported for them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "knhk_sidecar", "--help"], capture_output=True, text=True, check=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in loaded
    assert loaded.isdisjoint({"grpc", "google", "knhk_workflow", "rich", "uvicorn", "starlette", "cryptography"})


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["cas"], 2, "No such command 'cas'"),
        (["case", "show"], 2, "Missing argument 'CASE_ID'"),
        (["case", "list", "--state", "sleeping"], 2, "'sleeping' is not one of"),
        (["case", "run", "x", "--data", "{"], 2, "--data is not JSON"),
        (["case", "run", "x", "--data", "[1]"], 2, "--data has to be a JSON object"),
        (["case", "run", "x", "--data", "@/nowhere.json"], 2, "/nowhere.json: No such file"),
        (["case", "run", "x", "--set", "amount"], 2, "'amount' is no assignment"),
        (["case", "update", "x"], 2, "there is nothing to change"),
        (["case", "resolve", "7", "--action", "retry"], 2, "names no case"),
        (["restore", "a.knhk", "--into", "b", "--until-time", "2026-03-01"], 2, "is no time with its offset"),
        (["audit", "list", "--after", "2026-03-01"], 2, "is no time with its offset"),
        (["case", "history", "x", "--watch", "--reverse"], 6, "no running daemon"),
        (["pattern", "run", "-5"], 2, "No such option"),
        (["case", "list", "--address", "10.0.0.1:50051"], 6, "has to be mTLS"),
        (["case", "list", "--address", "127.0.0.1:1", "--ca", "/nowhere.pem"], 6, "/nowhere.pem cannot be read"),
        (["case", "list", "--address", "127.0.0.1:1", "--cert", "a.pem"], 6, "incomplete"),
    ],
)
def test_mistakes_are_told_with_what_mends_them(
    arguments: list[str], code: int, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("KGC_SIDECAR_DATA_DIR", str(tmp_path))
    assert root.run(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert reason in err
    assert "\nmend:  " in err


def test_no_daemon_is_unavailable_and_says_how_to_start_one(tmp_path: Path) -> None:
    done = knhk("case", "list", cwd=tmp_path)
    assert done.returncode == 6
    assert "knhk dev" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_that_ended_is_told_from_one_that_never_was(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "daemon.json").write_text('{"pid": 999999999, "grpc": "127.0.0.1:1"}')
    done = knhk("case", "list", "--data-dir", str(tmp_path))
    assert done.returncode == 6
    assert "has ended" in done.stderr


def test_config_shows_where_values_come_from(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text("max_in_flight = 7\n")
    done = knhk(
        "config", "show", "--changed", "--config", str(file), "-o", "json", extra={"KGC_SIDECAR_LOG_LEVEL": "debug"}
    )
    assert done.returncode == 0, done.stderr
    assert '"origin": "env KGC_SIDECAR_LOG_LEVEL"' in done.stdout
    assert f'"origin": "file {file}"' in done.stdout


def test_settings_that_cannot_be_used_are_all_told(tmp_path: Path) -> None:
    done = knhk(
        "serve", "--data-dir", str(tmp_path), extra={"KGC_SIDECAR_LOG_LEVL": "x", "KGC_SIDECAR_BATCH_SIZE": "no"}
    )
    assert done.returncode == 2
    assert "KGC_SIDECAR_LOG_LEVL" in done.stderr
    assert "KGC_SIDECAR_LOG_LEVEL" in done.stderr  # the nearest known name
    assert "KGC_SIDECAR_BATCH_SIZE" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_program(shell: str) -> None:
    done = knhk("completion", shell)
    assert done.returncode == 0
    assert "_KNHK_COMPLETE" in done.stdout


def test_completion_completes() -> None:
    extra = {"_KNHK_COMPLETE": "bash_complete", "COMP_WORDS": "knhk case re", "COMP_CWORD": "2"}
    done = knhk(extra=extra)
    assert sorted(line.partition(",")[2] for line in done.stdout.split()) == ["resolve", "resume"]
