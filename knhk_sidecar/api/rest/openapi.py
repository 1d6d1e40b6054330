"""The OpenAPI 3.1 description, made of the same descriptors as the routes, so it cannot differ from what is served."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from knhk_sidecar.api.rest.bodies import DOCUMENT_CALLS, DOCUMENT_TYPES
from knhk_sidecar.api.rest.canonical import Field, Kind, descriptor_of, query_names, shape_of
from knhk_sidecar.api.rest.events import resume_field
from knhk_sidecar.api.rest.problems import MEDIA_TYPE
from knhk_sidecar.api.rest.routes import ROOT, Route, RouteTable

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

Schema: TypeAlias = dict[str, "Schema"] | list["Schema"] | str | bool | int

_WORD: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SCALARS: Final[Mapping[Kind, Schema]] = {
    Kind.BOOL: {"type": "boolean"},
    Kind.FLOAT: {"type": "number"},
    Kind.STRING: {"type": "string"},
    Kind.TEXT: {"type": "string"},
    Kind.BASE64: {"type": "string", "contentEncoding": "base64"},
    Kind.TIME: {"type": "string", "format": "date-time"},
    Kind.DURATION: {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?s$", "description": "seconds, for example 1.5s"},
}
_PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "An RFC 9457 problem.",
    "required": ["type", "title", "status", "detail", "reason"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string", "description": "stable, in upper snake case"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("field", "code", "message", "hint")},
            },
        },
        "info": {"type": "object", "additionalProperties": {"type": "string"}},
        "retry_after_ms": {"type": "integer"},
    },
}
_STATUS: Final[Schema] = {
    "type": "object",
    "description": "A google.rpc.Status: why one element was refused.",
    "properties": {
        "code": {"type": "integer"},
        "message": {"type": "string"},
        "details": {"type": "array", "items": {"type": "object"}},
    },
}


@lru_cache(maxsize=2)  # made once per process; it takes some milliseconds
def description(table: RouteTable) -> bytes:
    """The document as JSON."""
    schemas: dict[str, Schema] = {"Problem": _PROBLEM, "Status": _STATUS}
    paths: dict[str, Schema] = {}
    for route in table.routes:
        path = paths.setdefault(ROOT + route.template, {})
        assert isinstance(path, dict)
        path[route.verb.lower()] = _operation(route, schemas)
    paths |= _health_paths()
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "KNHK sidecar",
            "version": _version(),
            "description": "Durable workflow beside your application.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }
    return msgspec.json.encode(document)


def _version() -> str:
    try:
        return version("knhk-sidecar")
    except PackageNotFoundError:
        return "0"


def _operation(route: Route, schemas: dict[str, Schema]) -> Schema:
    method = route.method
    service = method.service.rpartition(".")[2]
    request = descriptor_of(method.request)
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": _field(shape_of(request).by_name[name], schemas)}
        for name in route.variables
    ]
    if not route.has_body:
        parameters += [
            {"name": name, "in": "query", "schema": _query_schema(request, name, schemas)}
            for name in query_names(request)
            if name not in route.variables
        ]
    if method.has_request_id:
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 128}})
    if method.server_streaming and resume_field(request):
        parameters.append({"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}})
    operation: dict[str, Schema] = {
        "operationId": f"{service}_{method.name}",
        "summary": _WORD.sub(" ", method.name).capitalize(),
        "tags": [service],
        "parameters": parameters,
        "responses": {
            "200": {"description": "OK", "content": _content(route, schemas)},
            "default": {
                "description": "Refused",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if route.has_body:
        content: dict[str, Schema] = {"application/json": {"schema": _message(request, schemas)}}
        if method.path in DOCUMENT_CALLS:
            content |= {media_type: {"schema": {"type": "string"}} for media_type in DOCUMENT_TYPES}
        operation["requestBody"] = {"content": content}
    return operation


def _query_schema(request: Descriptor, name: str, schemas: dict[str, Schema]) -> Schema:
    shape = shape_of(request)
    field = shape.by_name.get(name)
    if field is None:
        field = shape_of(shape.by_name["filter"].message).by_name[name]
    return _field(field, schemas)


def _content(route: Route, schemas: dict[str, Schema]) -> Schema:
    response = descriptor_of(route.method.response)
    if route.method.server_streaming:
        if "chunk" in response.fields_by_name:
            return {"application/octet-stream": {"schema": {"type": "string", "contentEncoding": "binary"}}}
        return {"text/event-stream": {"schema": {"type": "string"}}}
    if route.member:
        return {"application/json": {"schema": _field(shape_of(response).by_name[route.member], schemas)}}
    return {"application/json": {"schema": _message(response, schemas)}}


def _message(descriptor: Descriptor, schemas: dict[str, Schema]) -> Schema:
    if descriptor.name not in schemas:
        schemas[descriptor.name] = {}  # holds the place: messages may contain themselves
        schemas[descriptor.name] = {
            "type": "object",
            "properties": {field.public: _field(field, schemas) for field in shape_of(descriptor).fields},
        }
    return {"$ref": f"#/components/schemas/{descriptor.name}"}


def _field(field: Field, schemas: dict[str, Schema]) -> Schema:
    value = _value(field, schemas)
    if field.is_map:
        return {"type": "object", "additionalProperties": value}
    return {"type": "array", "items": value} if field.repeated else value


def _value(field: Field, schemas: dict[str, Schema]) -> Schema:
    match field.kind:
        case Kind.MESSAGE:
            return _message(field.message, schemas)
        case Kind.STATUS:
            return {"$ref": "#/components/schemas/Status"}
        case Kind.ENUM:
            return {"type": "string", "enum": [each.name for each in field.enum.values]}
        case Kind.INT:
            unsigned = field.value.cpp_type in (field.value.CPPTYPE_UINT32, field.value.CPPTYPE_UINT64)
            return {"type": "integer", "minimum": 0} if unsigned else {"type": "integer"}
        case Kind.JSON:
            return {"description": "any JSON"}
        case kind:
            return _SCALARS[kind]


def _health_paths() -> dict[str, Schema]:
    status: Schema = {"type": "string", "enum": ["Healthy", "Degraded", "Unhealthy"]}
    component: Schema = {"type": "object", "properties": {"status": status, "detail": {"type": "string"}}}
    health: Schema = {
        "type": "object",
        "properties": {
            "status": status,
            "service": {"type": "string"},
            "version": {"type": "string"},
            "components": {"type": "object", "additionalProperties": component},
        },
    }
    ready: Schema = {"type": "object", "properties": {"ready": {"type": "boolean"}, "reason": {"type": "string"}}}
    alive: Schema = {"type": "object", "properties": {"alive": {"type": "boolean"}}}
    return {
        "/health": _health_path("Health of the whole and of its parts", health),
        "/health/live": _health_path("Whether the process is alive", alive),
        "/health/ready": _health_path("Whether calls are wanted here", ready),
    }


def _health_path(summary: str, schema: Schema) -> Schema:
    content: Schema = {"application/json": {"schema": schema}}
    return {
        "get": {
            "summary": summary,
            "operationId": summary.replace(" ", "_"),
            "tags": ["Health"],
            "responses": {
                "200": {"description": "OK", "content": content},
                "503": {"description": "Not now", "content": content},
            },
        }
    }
