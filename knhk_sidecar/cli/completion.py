"""`knhk completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from knhk_sidecar.cli.root import knhk


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the script that completes knhk's commands in a shell.

    \b
    Example:
      eval "$(knhk completion bash)"       in ~/.bashrc
      knhk completion fish > ~/.config/fish/completions/knhk.fish
    """
    found = get_completion_class(shell)
    assert found is not None, shell
    # The script alone is wanted; asking bash for its version, as some versions of click do here, has no place in it.
    click.echo(
        found(knhk, {}, "knhk", "_KNHK_COMPLETE").source_template
        % found(knhk, {}, "knhk", "_KNHK_COMPLETE").source_vars()
    )
