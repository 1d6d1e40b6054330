"""`knhk config`: the settings and where each comes from."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from knhk_sidecar.cli.failure import settings_refused
from knhk_sidecar.cli.render import console, grid, structured
from knhk_sidecar.cli.session import FILE, OUTPUTS
from knhk_sidecar.config import ConfigError, load


@click.group()
def config() -> None:
    """The settings and where each comes from.

    \b
    Example:
      knhk config show
    """


@config.command("show")
@click.option("--config", "file", type=FILE, help="A TOML file with settings.")
@click.option("--changed", is_flag=True, help="Only those that are not the default.")
@click.option(
    "-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True, help="How to print the answer."
)
def show(file: Path | None, changed: bool, output: str) -> None:
    """Show every setting that `knhk serve` would run with here, and where it comes from; secrets are masked.

    \b
    Example:
      KGC_SIDECAR_LOG_LEVEL=debug knhk config show --changed
    """
    try:
        lines = load(file=str(file) if file is not None else None).describe()
    except ConfigError as error:
        raise settings_refused(error) from error
    chosen = [line for line in lines if not changed or line.origin != "default"]
    if output != "table":
        structured(
            [
                {"name": each.name, "value": each.value, "unit": each.unit, "origin": each.origin, "doc": each.doc}
                for each in chosen
            ],
            output,
        )
        return

    table = grid("setting", "value", "from", "meaning")
    for each in chosen:
        value = f"{each.value} {each.unit}".strip()
        table.add_row(
            each.name, value, Text(each.origin, style="dim" if each.origin == "default" else "cyan"), each.doc
        )
    console().print(table if chosen else Text("Every setting has its default.", style="dim"))
