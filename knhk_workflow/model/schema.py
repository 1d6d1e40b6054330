"""JSON Schemas that authors write for case data, compiled once.

Validation is linear in data and schema except for patterns, which are limited by the validator's own engine.
"""

from __future__ import annotations

import functools

import jsonschema_rs

from knhk_workflow.errors import InvalidInput

SCHEMAS_MAX = 256  # compiled schemas kept
VIOLATIONS_MAX = 50  # more than a person reads at once


class DataSchema:
    """A compiled schema."""

    __slots__ = ("_validator",)

    def __init__(self, validator: jsonschema_rs.Draft202012Validator) -> None:
        self._validator = validator

    def violations(self, data: object) -> list[tuple[tuple[str | int, ...], str]]:
        """(path, message) of each violation, at most VIOLATIONS_MAX."""
        found: list[tuple[tuple[str | int, ...], str]] = []
        for error in self._validator.iter_errors(data):
            found.append((tuple(error.instance_path), error.message))
            if len(found) == VIOLATIONS_MAX:
                break
        return found


@functools.lru_cache(SCHEMAS_MAX)
def compiled_schema(schema: bytes) -> DataSchema:
    """The schema in these bytes (JSON Schema 2020-12). Remote references are never fetched. Raises InvalidInput."""
    try:
        return DataSchema(
            jsonschema_rs.Draft202012Validator(
                schema.decode(),
                retriever=_no_remote,
                pattern_options=jsonschema_rs.RegexOptions(),
            )
        )
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise InvalidInput.field("data_schema", f"is not a JSON Schema: {error}") from error


def _no_remote(uri: str) -> dict[str, object]:
    raise ValueError(f"reference {uri!r} is outside the schema; write it under $defs")
