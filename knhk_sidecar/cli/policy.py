"""`knhk policy`: who may do what, in a daemon or in a file that is not in force yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import click
from rich.console import Group, RenderableType
from rich.text import Text

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.policy import explained, roles_told
from knhk_sidecar.cli.failure import Exit, Failure
from knhk_sidecar.cli.render import console, grid, pairs, show, structured, text_of
from knhk_sidecar.cli.session import OUTPUTS, Session, connected, data_argument, read_file
from knhk_sidecar.identity.policy import Policy
from knhk_sidecar.identity.policy_document import BUILT_IN_ROLES, Document, InvalidPolicy, parse, remarks, schema
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.pipeline.explaining import Explaining
from knhk_workflow import InvalidInput

_file = click.Path(path_type=Path, allow_dash=True)
_OUTCOMES: Final[Mapping[str, str]] = {
    "decides": "bold",
    "allows": "green",
    "denies": "red",
    "silent": "dim",
    "elsewhere": "yellow",
    "not addressed": "dim",
}


@click.group()
def policy() -> None:
    """Who may do what: explain, show, validate.

    \b
    Example:
      knhk policy explain --principal spiffe://example.org/ns/shop/sa/web --method CreateCase
    """


@policy.command("explain")
@click.option("--principal", default="", help="A SPIFFE id, or jwt:ISSUER#SUBJECT; without it: the caller.")
@click.option("--method", required=True, help="A call, for example GetCase.")
@click.option("--resource", default="", help="cases/ID, workflows/ID or patterns/N that it would be done to.")
@click.option("--claims", metavar="JSON|@FILE", help="Claims of the token.")
@click.option("--file", "file", type=_file, help="A policy to ask instead of the daemon's.")
@connected
def explain(
    session: Session, principal: str, method: str, resource: str, claims: str | None, file: Path | None
) -> None:
    """Say whether somebody may do something, which rule decides, and what would be needed.

    \b
    Example:
      knhk policy explain --principal spiffe://example.org/ns/shop/sa/web --method GetCase --resource cases/order-17
      knhk policy explain --file policy.yaml --principal jwt:https://idp.example.org#ann \\
        --claims '{"groups": ["ops"]}' --method ResolveIncident
    """
    claims_json = data_argument(claims)
    if file is not None:
        answer = _asked_of_file(file, principal, method, resource, claims_json)
    else:
        request = pb.ExplainPolicyRequest(
            principal=principal, method=method, resource=resource, claims_json=claims_json
        )
        with session.client() as client:
            answer = client.admin.ExplainPolicy(request, timeout=session.timeout)
    show(answer, session.output, lambda: _explanation(answer, principal, method))


@policy.command("show")
@click.option("--file", "file", type=_file, help="A policy to show instead of the daemon's.")
@connected
def show_policy(session: Session, file: Path | None) -> None:
    """Show the policy in force: where it is from, its roles, its rules.

    \b
    Example:
      knhk policy show
    """
    if file is not None:
        document = _document(file)
        answer = pb.GetPolicyResponse(
            origin=str(file),
            policy_json=json.dumps(document.source).encode(),
            roles=roles_told(document.roles.values()),
        )
    else:
        with session.client() as client:
            answer = client.admin.GetPolicy(pb.GetPolicyRequest(), timeout=session.timeout)
    show(answer, session.output, lambda: _whole(answer))


@policy.command("validate")
@click.argument("file", type=_file, metavar="FILE|-")
def validate(file: Path) -> None:
    """Look for everything that is wrong with a policy.

    \b
    Example:
      knhk policy validate policy.yaml
    """
    document = _document(file)
    own = ", ".join(role.name for role in document.roles.values() if not role.built_in) or "none"
    click.echo(f"{file}: {len(document.rules)} rules, roles of its own: {own}; nothing is wrong")
    for rule, remark in remarks(document):
        click.echo(f"note: rule {rule} {remark}")


@policy.command("roles")
@click.option(
    "-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True, help="How to print the answer."
)
def roles(output: str) -> None:
    """List the built-in roles with their permissions.

    \b
    Example:
      knhk policy roles
    """
    if output != "table":
        structured(
            {role.name: sorted(each.value for each in role.permissions) for role in BUILT_IN_ROLES.values()}, output
        )
        return
    console().print(_role_table(roles_told(BUILT_IN_ROLES.values())))


@policy.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of policies, for editors.

    \b
    Example:
      knhk policy schema > policy.schema.json
    """
    click.echo(schema().decode(), nl=False)


@policy.command("sample")
def print_sample() -> None:
    """Print a policy to begin with.

    \b
    Example:
      knhk policy sample > policy.yaml
    """
    click.echo(resources.files("knhk_sidecar").joinpath("samples/policy.yaml").read_text(encoding="utf-8"), nl=False)


def _document(file: Path) -> Document:
    try:
        return parse(read_file(file))
    except InvalidPolicy as error:
        count = len(error.problems)
        message = f"{file} has {count} problem{'s' if count > 1 else ''}"
        mend = "mend what is listed; `knhk policy schema` describes the document"
        raise Failure(Exit.FAILED, message, mend, [str(each) for each in error.problems]) from error


def _asked_of_file(
    file: Path, principal: str, method: str, resource: str, claims_json: bytes
) -> pb.ExplainPolicyResponse:
    if not principal:
        raise Failure(Exit.USAGE, "a file knows no caller", "give --principal")
    asked = Policy(_document(file), origin=str(file))
    claims: Mapping[str, object] | None = json.loads(claims_json) if claims_json else None
    try:
        found = Explaining(Policies(asked)).explain(principal, method, resource, claims)
    except InvalidInput as error:
        raise Failure(Exit.USAGE, error.message, "; ".join(each.hint for each in error.problems)) from error
    return explained(found, asked.digest)


def _explanation(answer: pb.ExplainPolicyResponse, principal: str, method: str) -> RenderableType:
    verdict = Text("allowed", style="bold green") if answer.allowed else Text("denied", style="bold red")
    by = f" by rule {answer.rule}" if answer.rule else "" if answer.allowed else ": no rule allows it"
    head = pairs(
        (
            ("verdict", Text.assemble(verdict, by)),
            ("who", principal or "the caller"),
            ("call", f"{method}, which needs {answer.permission}"),
            ("tenant", answer.tenant),
            ("roles", ", ".join(answer.roles)),
            ("work roles", ", ".join(answer.work_roles)),
        )
    )
    table = grid("rule", "effect", "outcome", "why")
    for each in answer.rules:
        table.add_row(each.rule, each.effect, Text(each.outcome, style=_OUTCOMES.get(each.outcome, "")), each.reason)
    parts: list[RenderableType] = [head]
    if answer.rules:
        parts += [Text(), table]
    if answer.needed:
        parts += [Text(), Text("What would be needed:", style="bold"), *(Text(f"  {each}") for each in answer.needed)]
    return Group(*parts)


def _whole(answer: pb.GetPolicyResponse) -> RenderableType:
    document = json.loads(answer.policy_json)
    head = pairs((("from", answer.origin), ("digest", answer.digest[:16]), ("problem", answer.problem)))
    table = grid("rule", "effect", "who", "what", "of", "gives")
    for rule in document.get("rules", ()):
        given = {name: rule[name] for name in ("tenant", "work_roles", "limits", "may_allow_unsound") if name in rule}
        what = ", ".join((*rule.get("roles", ()), *rule.get("permissions", ())))
        table.add_row(
            rule["id"], rule["effect"], _short(rule["who"]), what, _short(rule.get("resources")), _short(given)
        )
    rules: RenderableType = table if document.get("rules") else Text("No rules: nobody may do anything.", style="dim")
    return Group(head, Text(), _role_table(answer.roles), Text(), rules)


def _role_table(found: Sequence[pb.PolicyRole]) -> RenderableType:
    table = grid("role", "for", "permissions")
    for role in found:
        table.add_row(role.name, role.description, ", ".join(role.permissions))
    return table


def _short(value: object) -> str:
    """A part of the document in one line."""
    if not value:
        return ""
    if isinstance(value, list):
        return " or ".join(_short(each) for each in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(each)}" for name, each in value.items())
    return text_of(str(value).encode())


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_plain(each) for each in value)
    if isinstance(value, Mapping):
        return "{" + _short(value) + "}"
    return text_of(str(value).encode())
