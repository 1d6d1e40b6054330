"""`knhk dev` and `knhk serve`: the daemon itself, in the foreground."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from knhk_sidecar.cli.failure import Exit, Failure, settings_refused
from knhk_sidecar.config import ConfigError, Loaded, Value, load
from knhk_workflow import InvalidInput, NotFound, StoreLocked, WorkflowError, plan_upgrade

if TYPE_CHECKING:
    from knhk_sidecar.app import Addresses
    from knhk_sidecar.config import SidecarConfig
    from knhk_workflow import WorkflowEngine

FINDINGS_SHOWN: Final = 20
POLICY: Final = "policy.yaml"  # among the samples, no workflow
SAMPLE: Final = "order-approval"  # the one that the printed lines run
SAMPLE_DATA: Final[Mapping[str, str | int]] = {"order": "O-1001", "customer": "acme", "amount": 250}


def _listening(command: Callable[..., int]) -> Callable[..., int]:
    path = click.Path(path_type=Path)
    for option in reversed(
        (
            click.option("--config", "file", type=path, help="A TOML file with settings."),
            click.option("--data-dir", type=path, help="Directory for everything that the daemon keeps."),
            click.option("--grpc-address", metavar="HOST:PORT", help="gRPC over mTLS. Port 0 is any free one."),
            click.option("--http-address", metavar="HOST:PORT", help="REST and health; `off` for none."),
            click.option("--metrics-address", metavar="HOST:PORT", help="Prometheus; `off` for none."),
            click.option("--ready-file", type=path, help="Write the real addresses there once ready, as JSON."),
            click.option("--log-level", type=click.Choice(("debug", "info", "warning", "error")), help="Least level."),
        )
    ):
        command = option(command)
    return command


@click.command()
@_listening
@click.option("--plain-address", metavar="HOST:PORT", help="gRPC without TLS, on loopback.")
@click.option("--virtual-time", is_flag=True, help="Let `knhk time advance` skip time; it runs on as usual otherwise.")
@click.option("--no-samples", is_flag=True, help="Do not register the sample workflows.")
def dev(
    file: Path | None,
    data_dir: Path | None,
    grpc_address: str | None,
    http_address: str | None,
    metrics_address: str | None,
    ready_file: Path | None,
    log_level: str | None,
    plain_address: str | None,
    virtual_time: bool,
    no_samples: bool,
) -> int:
    """Run a daemon for development, everything on.

    It makes its own certificate authority, opens a plain port on loopback with reflection, and registers the sample
    workflows. Never expose it: every process of this host may use it.

    \b
    Example:
      knhk dev
      knhk dev --data-dir /tmp/try --grpc-address 127.0.0.1:0 --plain-address 127.0.0.1:0 --http-address 127.0.0.1:0
    """
    flags: dict[str, Value | None] = {
        "dev": True,
        "virtual_time": virtual_time or None,
        "data_dir": _text(data_dir),
        "address": grpc_address,
        "plain_address": plain_address,
        "http_address": http_address,
        "metrics_address": metrics_address,
        "ready_file": _text(ready_file),
        "log_level": log_level,
    }
    loaded = _loaded(flags, file)
    quiet = {name: value for name, value in _QUIET.items() if name not in loaded.origins}
    loaded = _loaded({**flags, **quiet}, file)
    if not no_samples:
        _register_samples(loaded.config)
    return _run(loaded, lambda addresses: click.echo(welcome(addresses, loaded.config.data_dir, not no_samples)))


@click.command()
@_listening
@click.option("--dry-run", is_flag=True, help="Start nothing; say what a start would change in the store.")
def serve(
    dry_run: bool,
    file: Path | None,
    data_dir: Path | None,
    grpc_address: str | None,
    http_address: str | None,
    metrics_address: str | None,
    ready_file: Path | None,
    log_level: str | None,
) -> int:
    """Run the daemon for production. SIGTERM drains it.

    \b
    Example:
      knhk serve --data-dir /var/lib/knhk --config /etc/knhk/sidecar.toml
    """
    flags: dict[str, Value | None] = {
        "data_dir": _text(data_dir),
        "address": grpc_address,
        "http_address": http_address,
        "metrics_address": metrics_address,
        "ready_file": _text(ready_file),
        "log_level": log_level,
    }
    loaded = _loaded(flags, file)
    return _dry_run(loaded.config.store_path) if dry_run else _run(loaded, None)


def _dry_run(path: str) -> int:
    try:
        plan = asyncio.run(plan_upgrade(path))
    except NotFound:
        click.echo(f"{path}: there is no store yet; a start makes one")
        return 0
    except StoreLocked as error:
        raise Failure(Exit.UNAVAILABLE, error.message, "stop the daemon first, or try with a copy") from error
    except WorkflowError as error:
        raise Failure(Exit.PRECONDITION, f"{path}: {error.message}", "a start would refuse it as well") from error
    found = plan.examination
    click.echo(f"{path}: format {plan.made}, this version writes {plan.reads}")
    click.echo(f"{found.cases} cases with {found.events} events read and replayed, {found.purged} purged")
    for change in plan.changes:
        click.echo(f"would be changed: {change}")
    if plan.snapshots:
        click.echo(f"{plan.snapshots} cached states of another version would be made again as their cases go on")
    if plan.unfinished:
        click.echo(f"{plan.unfinished} unfinished purges would be carried on")
    if not plan.changes:
        click.echo("nothing would be changed before the first call")
    if not found.intact:
        findings = [f"{one.code}: {one.message}" for one in found.findings[:FINDINGS_SHOWN]]
        mend = "keep a copy of the directory, then `knhk restore` the last good backup"
        raise Failure(Exit.PRECONDITION, f"{path}: {found.found} things are wrong", mend, findings)
    return 0


_QUIET: Final[Mapping[str, Value]] = {"log_format": "console", "log_level": "warning"}  # a person is looking


def welcome(addresses: Addresses, data_dir: str = "", samples: bool = True) -> str:
    """What `knhk dev` says once it is ready: where it is, and lines to paste; without `samples` none that needs one."""
    http = f"http://{addresses.http}" if addresses.http else ""
    lines = ["KNHK sidecar is ready.", ""]
    lines += [
        f"  {name:<14}{where}"
        for name, where in (
            ("gRPC, mTLS", addresses.grpc),
            ("gRPC, plain", addresses.grpc_plain),
            ("REST", http),
            ("API page", f"{http}/swagger" if http else ""),
            ("metrics", f"http://{addresses.metrics}/metrics" if addresses.metrics else ""),
            ("certificates", str(Path(addresses.ca).parent) if addresses.ca else ""),
        )
        if where
    ]
    where = f" --data-dir {data_dir}" if data_dir else ""
    lines += ["", "Try it in another terminal:", ""]
    if samples:
        assignments = " ".join(f"--set {name}={value}" for name, value in SAMPLE_DATA.items())
        lines.append(f"  knhk case run {SAMPLE} {assignments}{where}")
    else:
        lines.append(f"  knhk pattern run 4 --set amount=250{where}")
    lines.append(f"  grpcurl -plaintext {addresses.grpc_plain} list knhk.sidecar.v1.CaseService")
    if http and samples:
        data = json.dumps({"spec_id": SAMPLE, "data": SAMPLE_DATA})
        lines.append(f"  curl -s {http}/api/v1/cases:run -H 'Content-Type: application/json' -d '{data}'")
    lines += ["", "Ctrl-C stops it; what it has promised is on disk."]
    return "\n".join(lines)


def _register_samples(config: SidecarConfig) -> None:
    """Registers the workflows of `knhk_sidecar/samples`. What was registered before stays as it is.

    A store that cannot be opened is the daemon's to report: it opens it again in a moment, and says why it cannot.
    Raises Failure for connectors that cannot be used, and for what else the engine refuses.
    """
    from knhk_sidecar.service import engine_of  # noqa: PLC0415 - only `knhk dev` pays for the engine here
    from knhk_workflow import StoreError  # noqa: PLC0415 - as above

    async def register(engine: WorkflowEngine) -> None:
        async with engine:
            samples = resources.files("knhk_sidecar").joinpath("samples").iterdir()
            texts = [each.read_bytes() for each in samples if each.name.endswith(".yaml") and each.name != POLICY]
            await asyncio.gather(*(engine.register_workflow(text, format="yaml") for text in texts))

    try:
        made = engine_of(config)
        with suppress(StoreError, OSError):
            if made is not None:
                asyncio.run(register(made))
    except ConfigError as error:
        raise settings_refused(error) from error
    except WorkflowError as error:
        found = [str(each) for each in error.problems] if isinstance(error, InvalidInput) else [error.message]
        mend = "mend what is listed, in connectors_file where it is about a connector"
        raise Failure(Exit.USAGE, "the settings cannot be used", mend, found) from error


def _loaded(flags: Mapping[str, Value | None], file: Path | None) -> Loaded:
    try:
        return load(flags, file=_text(file))
    except ConfigError as error:
        raise settings_refused(error) from error


def _run(loaded: Loaded, on_ready: Callable[[Addresses], None] | None) -> int:
    from knhk_sidecar import app  # noqa: PLC0415 - `knhk serve --help` needs no server

    return app.main(loaded, on_ready=on_ready)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
