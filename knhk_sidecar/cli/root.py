"""The tree of commands, and the one place where a failure becomes text and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

import click

from knhk_sidecar.cli.failure import Exit, Failure, safe

# name: (module, attribute, one line of help); the module is loaded when the command is called or its own help is asked
# for
COMMANDS: Final[Mapping[str, tuple[str, str, str]]] = {
    "dev": ("daemon", "dev", "Run a daemon for development, everything on."),
    "serve": ("daemon", "serve", "Run the daemon for production."),
    "pattern": ("patterns", "pattern", "The 43 workflow patterns: list, show, run."),
    "workflow": ("workflows", "workflow", "Workflow documents: validate, register, list, show, delete."),
    "case": ("cases", "case", "Cases: create, run, follow, explain, steer."),
    "work": ("work", "work", "Work items: list, claim, start, complete, fail."),
    "connector": ("connectors", "connector", "What tasks may call: list, probe, put, delete."),
    "dead-letter": ("connectors", "dead_letter", "Calls that were given up: list, retry, discard."),
    "schedule": ("schedules", "schedule", "Schedules: cases started by the calendar."),
    "time": ("times", "time_", "The time of a daemon with virtual time: show it, skip ahead."),
    "history": ("history", "history", "The history of cases: show, export, verify."),
    "audit": ("audit", "audit", "Who did what: list, export, verify, prove."),
    "backup": ("backup", "backup", "Take a backup of a running daemon's store."),
    "restore": ("backup", "restore", "Make a store from backups."),
    "verify": ("backup", "verify", "Examine a store, or a backup, to the last byte."),
    "policy": ("policy", "policy", "Who may do what: explain, show, validate."),
    "config": ("settings", "config", "The settings and where each comes from."),
    "token": ("token", "token", "A JWT-SVID from the SPIFFE agent of this host."),
    "doctor": ("doctor", "doctor", "Look for what could be wrong here, and say how to mend it."),
    "version": ("version", "version", "The versions of knhk and of what it stands on."),
    "completion": ("completion", "completion", "Completion for bash, zsh or fish."),
}


class Tree(click.Group):
    """The top level; loads a command's module when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute, _ = entry
        found = getattr(import_module(f"knhk_sidecar.cli.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in COMMANDS.items()])


@click.group(cls=Tree, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def knhk() -> None:
    """Durable workflow beside your application.

    \b
    Example:
      knhk dev                                             in one terminal
      knhk case run order-approval --data @order.json      in another
    """


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and answers its exit code; errors are on stderr."""
    try:
        outcome = knhk.main(list(arguments), prog_name="knhk", standalone_mode=False)
        return outcome if isinstance(outcome, int) else Exit.OK
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        context = error.ctx
        mend = f"see `{context.command_path} --help`" if context is not None else "see `knhk --help`"
        return _tell(Failure(Exit.USAGE, error.format_message(), mend))
    except click.FileError as error:
        return _tell(Failure(Exit.USAGE, error.format_message(), "check the path and its permissions"))
    except click.ClickException as error:
        return _tell(Failure(Exit.FAILED, error.format_message()))
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except Failure as error:
        return _tell(error)
    except BrokenPipeError:
        # The reader of a pipe (`knhk case list | head`) has gone; Python must not complain about it at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK


def _tell(failure: Failure) -> int:
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    error, mend = ("\x1b[31merror:\x1b[0m", "\x1b[36mmend:\x1b[0m") if coloured else ("error:", "mend:")
    lines = [f"{error} {safe(failure.message)}", *(f"  {safe(line)}" for line in failure.details)]
    if failure.mend:
        lines.append(f"{mend}  {failure.mend}")
    sys.stderr.write("\n".join(lines) + "\n")
    return failure.code
