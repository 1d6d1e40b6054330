"""`knhk token`: a bearer token for other programs, from the SPIFFE agent of this host."""

from __future__ import annotations

import click

from knhk_sidecar.bearer import AgentToken, NoToken
from knhk_sidecar.cli.failure import Exit, Failure
from knhk_sidecar.cli.session import Session, connected, ready_path
from knhk_sidecar.client import NotReachable, read_ready


@click.command()
@click.argument("audience")
@click.option(
    "--spiffe-id", default="", metavar="ID", help="Which of this process's ids; otherwise the agent's choice."
)
@connected
def token(session: Session, audience: str, spiffe_id: str) -> None:
    """Print a JWT-SVID for AUDIENCE, usually the SPIFFE id of the sidecar that will read it. It lives for minutes.

    It comes from the agent of --workload-api or SPIFFE_ENDPOINT_SOCKET, otherwise from that of the running `knhk dev`.

    \b
    Example:
      curl -H "Authorization: Bearer $(knhk token spiffe://knhk.dev/sidecar)" http://127.0.0.1:8080/cases
    """
    try:
        endpoint = (
            session.workload_api or session.spiffe_socket or read_ready(ready_path(session.data_dir)).workload_api
        )
        if not endpoint:
            raise Failure(Exit.UNAVAILABLE, "no SPIFFE agent is known here", "give --workload-api")
        click.echo(AgentToken(endpoint, audience, spiffe_id)())
    except (NotReachable, NoToken) as error:
        raise Failure(Exit.UNAVAILABLE, str(error), error.mend) from error
