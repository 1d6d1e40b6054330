"""`knhk pattern`: the 43 workflow patterns."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.drawing import drawing_of
from knhk_sidecar.cli.failure import Exit, Failure, safe
from knhk_sidecar.cli.render import Timeline, console, grid, pairs, show, stated, text_of
from knhk_sidecar.cli.session import Session, connected, data_argument, data_option, set_option


@click.group()
def pattern() -> None:
    """The 43 workflow patterns: list, show, run.

    \b
    Example:
      knhk pattern run 3
    """


@pattern.command("list")
@click.option("--category", default="", help="Only this category.")
@click.option("--available", is_flag=True, help="Only those that this daemon can run.")
@connected
def list_patterns(session: Session, category: str, available: bool) -> None:
    """List the catalogue.

    \b
    Example:
      knhk pattern list --available
    """
    with session.client() as client:
        request = pb.ListPatternsRequest(category=category, page_size=100)
        answer = client.patterns.ListPatterns(request, timeout=session.timeout)
    if available:
        kept = [each for each in answer.patterns if each.available]
        del answer.patterns[:]
        answer.patterns.extend(kept)
    show(answer, session.output, lambda: _patterns_table(answer))


@pattern.command("show")
@click.argument("number", type=int)
@connected
def show_pattern(session: Session, number: int) -> None:
    """Show a pattern with its net.

    \b
    Example:
      knhk pattern show 3
    """
    with session.client() as client:
        found = client.patterns.GetPattern(
            pb.GetPatternRequest(pattern_id=_number(number)), timeout=session.timeout
        ).pattern
    show(found, session.output, lambda: _pattern_page(found))


@pattern.command("run")
@click.argument("number", type=int)
@data_option
@set_option
@click.option(
    "--var", "variables", multiple=True, metavar="NAME=TEXT", help="A variable of the run, always a string. Repeatable."
)
@click.option("--durable", is_flag=True, help="Keep the run as a case with history.")
@click.option("--case", "case_id", default="", help="The id of a durable run.")
@connected
def run_pattern(
    session: Session,
    number: int,
    data: str | None,
    assignments: tuple[str, ...],
    variables: tuple[str, ...],
    durable: bool,
    case_id: str,
) -> None:
    """Run a pattern's net and show what happens.

    \b
    Example:
      knhk pattern run 4 --set amount=250
    """
    request = pb.ExecutePatternRequest(
        pattern_id=_number(number), data_json=data_argument(data, assignments), durable=durable, case_id=case_id
    )
    for variable in variables:
        name, equals, text = variable.partition("=")
        if not equals or not name:
            raise Failure(Exit.USAGE, f"--var {variable!r} is no assignment", "write --var NAME=TEXT")
        request.variables[name] = text
    with session.client() as client:
        answer = client.patterns.ExecutePattern(request, timeout=session.timeout)
    if session.output == "table":
        line = Timeline()
        for event in answer.trace:
            line.print(event)
        console().print(_result(answer))
    else:
        show(answer, session.output, lambda: "")
    if not answer.success:
        raise Failure(
            Exit.FAILED,
            answer.message or "the run did not do what the pattern demands",
            "the trace above says where it stopped",
        )


def _number(number: int) -> int:
    if not 0 <= number < 2**32:
        raise Failure(
            Exit.NOT_FOUND, f"there is no pattern {number}", "patterns are 1 to 43; `knhk pattern list` shows them"
        )
    return number


def _patterns_table(answer: pb.ListPatternsResponse) -> RenderableType:

    table = grid(">", "pattern", "category", "construct", "can run")
    for each in answer.patterns:
        runs = Text("yes", style="green") if each.available else Text("later", style="dim")
        table.add_row(str(each.pattern_id), each.name, each.category, each.construct, runs)
    return table


def _pattern_page(found: pb.Pattern) -> RenderableType:

    script = ", then ".join(
        " ".join(part for part in (each.move.replace("_", " "), each.task or each.name) if part)
        for each in found.default_script
    )
    head = pairs(
        (
            ("pattern", f"{found.pattern_id}  {found.name}"),
            ("also called", ", ".join(found.aliases)),
            ("category", found.category),
            ("construct", found.construct),
            ("means", found.summary),
            ("holds when", "\n".join(found.context_conditions)),
            ("literature", found.literature),
            ("default script", script),
            ("can run", "yes" if found.available else "in a later version"),
        )
    )
    if not found.net_json:
        return head
    return Group(head, Text(""), Text(safe(drawing_of(found.net_json, console().width)), no_wrap=True))


def _result(answer: pb.ExecutePatternResponse) -> RenderableType:

    verdict = Text("yes", style="green") if answer.success else Text("no", style="bold red")
    return Group(
        Text(""),
        pairs(
            (
                ("success", verdict),
                ("state", stated(answer.next_state)),
                ("next", ", ".join(answer.next_activities)),
                ("withdrawn", ", ".join(answer.cancel_activities)),
                ("changed data", text_of(answer.updates_json).replace("{}", "")),
                ("case", answer.case_id),
            )
        ),
    )
