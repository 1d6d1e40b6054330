"""HTTP method and path -> operation, read from the contract's google.api.http annotations.

Paths are matched on their raw segments, each unquoted by itself, so an id may contain `%2F`. Every route exists under
`/api/v1/...` and under the bare path. A literal segment wins over a variable one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from google.api import annotations_pb2

from knhk_sidecar.pipeline import Method
from knhk_workflow import InvalidInput

if TYPE_CHECKING:
    from google.api.http_pb2 import HttpRule
    from google.protobuf.descriptor import ServiceDescriptor

ROOT = "/api/v1"


@dataclass(frozen=True, slots=True)
class Route:
    """One way to call an operation over HTTP."""

    verb: str
    template: str
    """Without the root: `/cases/{case_id}/history`."""
    method: Method
    has_body: bool
    member: str
    """The field of the response that is the answer; empty: all of it."""
    segments: tuple[str, ...]

    @property
    def variables(self) -> tuple[str, ...]:
        """The fields of the request that the path carries."""
        return tuple(each[1:-1] for each in self.segments if each.startswith("{"))


@dataclass(slots=True)
class _Node:
    literal: dict[str, _Node] = field(default_factory=dict)
    variable: _Node | None = None
    routes: dict[str, Route] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A path of the contract: its routes by verb, and what stands in the place of its variables."""

    routes: Mapping[str, Route]
    values: tuple[str, ...]


class RouteTable:
    """All routes of some services."""

    def __init__(self, services: Sequence[ServiceDescriptor], methods: Mapping[str, Method]) -> None:
        """`methods` are the pipeline's, by gRPC path; they contain every RPC of the services."""
        self.routes: tuple[Route, ...] = tuple(each for service in services for each in _routes(service, methods))
        self._root = _Node()
        for route in self.routes:
            node = self._root
            for segment in route.segments:
                if segment.startswith("{"):
                    node.variable = node.variable or _Node()
                    node = node.variable
                else:
                    node = node.literal.setdefault(segment, _Node())
            assert route.verb not in node.routes, f"{route.verb} {route.template} stands twice in the contract"
            node.routes[route.verb] = route

    def find(self, raw_path: str) -> Found | None:
        """The routes of a path as it came over the wire (still quoted, without query), or None."""
        path = raw_path.removeprefix(ROOT) if raw_path == ROOT or raw_path.startswith(ROOT + "/") else raw_path
        parts = path.rstrip("/").split("/")[1:]
        return _descend(self._root, [_unquoted(each) for each in parts], 0, ())

    def nearest(self, raw_path: str) -> str:
        """The template most like a path that does not exist; empty when nothing is."""
        path = raw_path.removeprefix(ROOT)
        templates = sorted({route.template for route in self.routes})
        close = difflib.get_close_matches(path, templates, n=1, cutoff=0.5)
        return ROOT + close[0] if close else ""


def _descend(node: _Node, parts: Sequence[str], index: int, values: tuple[str, ...]) -> Found | None:
    if index == len(parts):
        return Found(node.routes, values) if node.routes else None
    part = parts[index]
    literal = node.literal.get(part)
    if literal is not None:
        found = _descend(literal, parts, index + 1, values)
        if found is not None:
            return found
    if node.variable is not None and part:
        return _descend(node.variable, parts, index + 1, (*values, part))
    return None


def _unquoted(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput.field(
            "", f"the path segment {segment!r} is not UTF-8", "percent-encode its UTF-8 bytes"
        ) from error


def _routes(service: ServiceDescriptor, methods: Mapping[str, Method]) -> Iterator[Route]:
    for rpc in service.methods:
        rule: HttpRule = rpc.GetOptions().Extensions[annotations_pb2.http]  # type: ignore[index]  # an untyped extension
        if rule.WhichOneof("pattern") is None or rpc.client_streaming:
            continue
        method = methods[f"/{service.full_name}/{rpc.name}"]
        for each in (rule, *rule.additional_bindings):
            verb = each.WhichOneof("pattern")
            assert verb in ("get", "post", "put", "patch", "delete"), f"{rpc.full_name}: unknown verb {verb}"
            assert each.body in ("", "*"), f"{rpc.full_name}: a body is everything or nothing"
            template: str = getattr(each, verb)
            assert template.startswith(ROOT + "/"), f"{rpc.full_name}: {template} is outside {ROOT}"
            bare = template.removeprefix(ROOT)
            member = each.response_body or rule.response_body
            yield Route(verb.upper(), bare, method, each.body == "*", member, tuple(bare.split("/")[1:]))
