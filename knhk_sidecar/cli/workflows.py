"""`knhk workflow`: workflow documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click
from rich.console import Group, RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.cli.drawing import drawing_of
from knhk_sidecar.cli.failure import Exit, Failure, safe
from knhk_sidecar.cli.pages import gathered
from knhk_sidecar.cli.render import ago, console, grid, moment, pairs, short, show
from knhk_sidecar.cli.session import Session, connected, read_file, request_id_option

TRACE_SHOWN: Final = 20  # tasks of a counterexample on the terminal; --output json has them all
FORMATS: Final = ("json", "yaml", "yawl", "bpmn")
_SUFFIXES: Final = {".json": "json", ".yaml": "yaml", ".yml": "yaml", ".yawl": "yawl", ".bpmn": "bpmn"}


@click.group()
def workflow() -> None:
    """Workflow documents: validate, register, list, show, delete.

    \b
    Example:
      knhk workflow register order-approval.yaml
    """


_document = click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE|-")
_format = click.option(
    "--format", "format_", type=click.Choice(FORMATS), help="Format of the file; otherwise by its name."
)


@workflow.command("register")
@_document
@_format
@click.option("--allow-unsound", is_flag=True, help="Register it even when verification says that it can get stuck.")
@request_id_option
@connected
def register(session: Session, file: Path, format_: str | None, allow_unsound: bool, request_id: str) -> None:
    """Verify a workflow and store it as the next version of its id.

    \b
    Example:
      knhk workflow register order-approval.yaml
    """
    request = pb.RegisterWorkflowRequest(
        document=read_file(file), format=_format_of(file, format_), allow_unsound=allow_unsound, request_id=request_id
    )
    with session.client() as client:
        answer = client.workflows.RegisterWorkflow(request, timeout=session.timeout)
    show(answer, session.output, lambda: _registered(answer))


@workflow.command("validate")
@_document
@_format
@connected
def validate(session: Session, file: Path, format_: str | None) -> None:
    """Verify a workflow without storing it. Exit code 1 when it would be refused.

    \b
    Example:
      knhk workflow validate order-approval.yaml
    """
    request = pb.ValidateWorkflowRequest(document=read_file(file), format=_format_of(file, format_))
    with session.client() as client:
        answer = client.workflows.ValidateWorkflow(request, timeout=session.timeout)
    show(answer, session.output, lambda: _validated(answer))
    if not answer.valid:
        raise Failure(Exit.FAILED, f"{file} would be refused", "mend the findings above")


@workflow.command("list")
@click.option("--prefix", default="", help="Only ids that begin with this.")
@click.option("--all-versions", is_flag=True, help="Every version; otherwise the latest of each.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most workflows to list.")
@connected
def list_workflows(session: Session, prefix: str, all_versions: bool, limit: int) -> None:
    """List workflows.

    \b
    Example:
      knhk workflow list
    """
    with session.client() as client:

        def page(size: int, token: str) -> pb.ListWorkflowsResponse:
            request = pb.ListWorkflowsRequest(
                spec_id_prefix=prefix, all_versions=all_versions, page_size=size, page_token=token
            )
            return client.workflows.ListWorkflows(request, timeout=session.timeout)

        whole = gathered(limit, page, lambda found: found.workflows)
    show(whole, session.output, lambda: _workflows_table(whole))


@workflow.command("show")
@click.argument("spec_id", metavar="WORKFLOW")
@click.option("--version", "version", type=click.IntRange(min=0), default=0, help="The version; 0 is the latest.")
@connected
def show_workflow(session: Session, spec_id: str, version: int) -> None:
    """Show a workflow with its net.

    \b
    Example:
      knhk workflow show order-approval
    """
    with session.client() as client:
        request = pb.GetWorkflowRequest(spec_id=spec_id, version=version)
        found = client.workflows.GetWorkflow(request, timeout=session.timeout).workflow
    show(found, session.output, lambda: _workflow_page(found))


@workflow.command("delete")
@click.argument("spec_id", metavar="WORKFLOW")
@click.option("--version", "version", type=click.IntRange(min=0), default=0, help="The version; 0 is all of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@request_id_option
@connected
def delete(session: Session, spec_id: str, version: int, yes: bool, request_id: str) -> None:
    """Remove a workflow that no living case uses.

    \b
    Example:
      knhk workflow delete order-approval --version 1 --yes
    """
    if not yes:
        what = f"version {version} of {spec_id}" if version else f"every version of {spec_id}"
        click.confirm(f"Remove {what}?", abort=True, err=True)
    with session.client() as client:
        request = pb.DeleteWorkflowRequest(spec_id=spec_id, version=version, request_id=request_id)
        answer = client.workflows.DeleteWorkflow(request, timeout=session.timeout)
    removed = ", ".join(str(each) for each in answer.deleted_versions)
    show(answer, session.output, lambda: f"Removed {answer.spec_id}" + (f", version {removed}." if removed else "."))


def _format_of(file: Path, given: str | None) -> str:
    return given or _SUFFIXES.get(file.suffix.lower(), "")


def _findings(findings: Iterable[pb.Finding]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    styles = {pb.SEVERITY_ERROR: ("error", "bold red"), pb.SEVERITY_WARNING: ("warning", "yellow")}
    for each in findings:
        word, style = styles.get(each.severity, ("note", "cyan"))
        lines.append(
            Text.assemble(
                (f"{word:<8}", style), (each.element or "(document)", "bold"), f"  {each.message}  ", (each.code, "dim")
            )
        )
        if each.hint:
            lines.append(Text(f"        {each.hint}"))
        if each.trace:
            *way, left = each.trace
            if len(way) > TRACE_SHOWN:
                way = [f"{len(way) - TRACE_SHOWN} tasks", *way[-TRACE_SHOWN:]]
            lines.append(Text(f"        after {', '.join(way) or 'nothing at all'}", style="dim"))
            lines.append(Text(f"        {left}", style="dim"))
    return lines


def _soundness(verdict: pb.Soundness.ValueType) -> str:
    name = pb.Soundness.Name(verdict).removeprefix("SOUNDNESS_").lower()
    return "not analysed" if name == "unspecified" else name


def _registered(answer: pb.RegisterWorkflowResponse) -> RenderableType:
    done = "registered" if answer.created else "was registered before"
    line = Text.assemble(
        (answer.spec_id, "bold"), f" {done}: version {answer.version}, {_soundness(answer.soundness)}."
    )
    return Group(line, *_findings(answer.findings))


def _validated(answer: pb.ValidateWorkflowResponse) -> RenderableType:
    verdict = ("valid", "green") if answer.valid else ("refused", "bold red")
    return Group(
        Text.assemble((answer.spec_id or "(no id)", "bold"), ": ", verdict, f", {_soundness(answer.soundness)}."),
        *_findings(answer.findings),
    )


def _workflows_table(answer: pb.ListWorkflowsResponse) -> RenderableType:
    if not answer.workflows:
        return Text("No workflows. `knhk workflow register FILE` adds one.", style="dim")
    table = grid("workflow", ">version", "name", ">tasks", "soundness", ">registered", "by")
    for each in answer.workflows:
        table.add_row(
            each.spec_id, str(each.version), each.name, str(each.task_count or ""), _soundness(each.soundness),
            ago(each.register_time), short(each.registered_by),
        )  # fmt: skip
    return table


def _workflow_page(found: pb.Workflow) -> RenderableType:
    head = pairs(
        (
            ("workflow", found.spec_id),
            ("name", found.name),
            ("version", str(found.version)),
            ("soundness", _soundness(found.soundness)),
            (
                "registered",
                moment(found.register_time) + (f" by {short(found.registered_by)}" if found.registered_by else ""),
            ),
            ("digest", found.digest),
        )
    )
    drawn = safe(drawing_of(found.spec_json, console().width)) if found.spec_json else ""
    return Group(head, Text(""), Text(drawn, no_wrap=True), *_findings(found.findings))
