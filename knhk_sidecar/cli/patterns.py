"""`knhk pattern`: the 43 workflow patterns."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.drawing import drawing_of
from knhk_sidecar.cli.failure import Exit, Failure, safe
from knhk_sidecar.cli.render import Timeline, console, disarm, grid, pairs, show, stated, text_of
from knhk_sidecar.cli.session import Session, connected, data_argument, data_option, set_option
from knhk_sidecar.client import Client


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
@click.argument("name")
@connected
def show_pattern(session: Session, name: str) -> None:
    """Show a pattern, by number, name or alias, with its net.

    \b
    Example:
      knhk pattern show 3
      knhk pattern show "AND-join"
    """
    with session.client() as client:
        request = pb.GetPatternRequest(pattern_id=_number(client, session, name))
        found = client.patterns.GetPattern(request, timeout=session.timeout).pattern
    show(found, session.output, lambda: _pattern_page(found))


@pattern.command("run")
@click.argument("name")
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
    name: str,
    data: str | None,
    assignments: tuple[str, ...],
    variables: tuple[str, ...],
    durable: bool,
    case_id: str,
) -> None:
    """Run a pattern's net, by number, name or alias, and show what happens as it happens.

    \b
    Example:
      knhk pattern run 4 --set amount=250
    """
    request = pb.ExecutePatternRequest(data_json=data_argument(data, assignments), durable=durable, case_id=case_id)
    for variable in variables:
        key, equals, text = variable.partition("=")
        if not equals or not key:
            raise Failure(Exit.USAGE, f"--var {variable!r} is no assignment", "write --var NAME=TEXT")
        request.variables[key] = text
    with session.client() as client:
        request.pattern_id = _number(client, session, name)
        if session.output == "table":
            answer = _watched(client, session, request)
            disarm(answer)
            console().print(_result(answer))
        else:
            answer = client.patterns.ExecutePattern(request, timeout=session.timeout)
            show(answer, session.output, lambda: "")
    if not answer.success:
        raise Failure(
            Exit.FAILED,
            answer.message or "the run did not do what the pattern demands",
            "the trace above says where it stopped",
        )


def _watched(client: Client, session: Session, request: pb.ExecutePatternRequest) -> pb.ExecutePatternResponse:
    """Run a pattern and print each event as it comes."""
    line = Timeline()
    asked = iter((pb.StreamExecutePatternRequest(correlation_id="1", execution=request, live=True),))
    for told in client.patterns.StreamExecutePattern(asked, timeout=session.timeout):
        match told.WhichOneof("outcome"):
            case "event":
                line.print(told.event)
            case "response":
                return told.response
            case _:
                # The stream gives an element's refusal as a value; asked alone it is raised like any other.
                return client.patterns.ExecutePattern(request, timeout=session.timeout)
    raise Failure(Exit.FAILED, "the daemon ended the run without an answer", "`knhk doctor` looks at the daemon")


def _number(client: Client, session: Session, name: str) -> int:
    """The number of a pattern that was named by number, `WCP-n`, name or alias; case and hyphens do not matter."""
    wanted = _folded(name)
    digits = wanted.removeprefix("wcp")
    if digits.isdecimal() and int(digits) < 2**32:
        return int(digits)
    catalogue = client.patterns.ListPatterns(pb.ListPatternsRequest(page_size=100), timeout=session.timeout)
    for each in catalogue.patterns:
        if wanted in map(_folded, (each.name, *each.aliases)):
            return each.pattern_id
    raise Failure(
        Exit.NOT_FOUND,
        f"there is no pattern {name!r}",
        "patterns are 1 to 43, or go by a name; `knhk pattern list` shows them",
    )


def _folded(name: str) -> str:
    return "".join(name.lower().replace("-", " ").split())


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
