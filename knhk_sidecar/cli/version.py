"""`knhk version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Final

import click

from knhk_sidecar.cli.render import structured
from knhk_sidecar.cli.session import OUTPUTS
from knhk_workflow import __version__

PARTS: Final = (
    "grpcio",
    "protobuf",
    "plyvel",
    "msgspec",
    "cel-expr-python",
    "starlette",
    "uvicorn",
    "uvloop",
    "cryptography",
)


@click.command()
@click.option(
    "-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True, help="How to print the answer."
)
def version(output: str) -> None:
    """The versions of knhk and of what it stands on.

    \b
    Example:
      knhk version -o json
    """
    found = {"knhk-sidecar": __version__, "python": platform.python_version()}
    found |= {name: _installed(name) for name in PARTS}
    if output == "table":
        for name, number in found.items():
            click.echo(f"{name:<16} {number}")
    else:
        structured(found, output)


def _installed(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return "not installed"
