"""Errors of HTTP itself, in the same RFC 9457 form as the errors of the contract."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import Response

from knhk_sidecar.api.faults import DOMAIN, HttpProblem, TokenRefused, to_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from knhk_workflow import WorkflowError

MEDIA_TYPE: Final = "application/problem+json"


class Refused(Exception):
    """A request that HTTP alone already refuses; nothing was executed."""

    def __init__(
        self, status: int, reason: str, title: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.problem = HttpProblem(
            type=f"https://{DOMAIN}/errors/{reason}", title=title, status=status, detail=detail, reason=reason
        )
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The answer."""
        return problem_response(self.problem, self.headers)


def fault_response(error: WorkflowError, *, takes_tokens: bool = False) -> Response:
    """The answer to a call that the pipeline refused. `takes_tokens`: a bearer token would have been looked at."""
    problem = to_problem(error)
    headers = {}
    if "retry_after_ms" in problem:
        headers["retry-after"] = str(math.ceil(problem["retry_after_ms"] / 1000))
    if problem["status"] == 401:
        # A certificate identifies too; there is no registered scheme for that.
        known = "Bearer" if takes_tokens else "mutual"
        headers["www-authenticate"] = 'Bearer error="invalid_token"' if isinstance(error, TokenRefused) else known
    return problem_response(problem, headers)


def problem_response(problem: HttpProblem, headers: Mapping[str, str]) -> Response:
    """A problem as a response."""
    return Response(msgspec.json.encode(problem), problem["status"], headers, MEDIA_TYPE)
