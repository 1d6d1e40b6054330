"""Guards and mappings: CEL over `data` and, inside an instance, `item`. Nothing else is in scope: no clock, no random.

The language is the Common Expression Language, evaluated by its C++ implementation. What this module adds is the
border: results are plain JSON, an error is never taken for false, and nothing that an author or a case can write
keeps the process busy or fills its memory.

    JSON integer  int64      within the range of int64; beyond it is an error, never a wrap-around
    JSON decimal  double     NaN and infinity are errors as results
    comparison    int and double compare by value; `data.amount > 100` works for 250 and for 250.5
    arithmetic    int with double is an error: write `double(data.amount) * 1.19`
    absent key    an error; ask with `has(data.key)`
    time          timestamp(...) and duration(...) of given texts; as results RFC 3339 and seconds ("90s")

Cost. The C++ evaluator stops after 10,000 iterations and at a nesting of 32, which bounds neither what one iteration
costs nor what a comprehension allocates (measured: `map` over 10,000 elements takes 4 s and 1.6 GB, `size` of a long
text in a loop 26 s). Expressions with a comprehension or with long concatenations are therefore weighed against the
data before they run (`weight.py`), and refused when the bound is above `WORK_MAX`. Others are linear in their input.

Only the top-level keys that an expression reads are handed to the evaluator: its conversion of the data is eager, so
a guard's cost would otherwise grow with the case's data.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from cel_expr_python import cel

from knhk_workflow.errors import InvalidInput, Problem, WorkflowError
from knhk_workflow.model.weight import Shape, shape_of, weigh

TEXT_MAX: Final = 4_096  # characters of source; a longer rule is a routing task with a mapping, or a connector
DEPTH_MAX: Final = 64  # nesting of a result: what strict_json accepts too; the evaluator recurses over it in C
NODES_MAX: Final = 100_000  # values in a result; converting so many takes 0.3 s, and 2 MB of case data hold few more
RESULT_CHARS_MAX: Final = 4_000_000  # characters in a result; twice the limit of case data, which the core enforces
WORK_MAX: Final = 10_000_000  # bound of weigh; about 40 ns each: 0.4 s at worst, and usually a hundredth of that
CACHE_MAX: Final = 2_048  # compiled expressions kept; a compiled net holds on to its own

_INT64_MAX: Final = 2**63 - 1
_INT64_MIN: Final = -(2**63)
_SHOWN_CHARS: Final = 200  # of a value in an error
_SHOWN_KEYS: Final = 16

_ABSENT: Final = object()
_PATH: Final = re.compile(r"\s*data(?:\.[A-Za-z_][A-Za-z0-9_]*)+\s*")

_ENVIRONMENT: Final = cel.NewEnv(variables={"data": cel.Type.DYN, "item": cel.Type.DYN})


class ExpressionInvalid(InvalidInput):
    """Source text that does not compile. `line` and `column` count from 1 and are 0 when the whole text is meant."""

    def __init__(self, text: str, line: int, column: int, problem: str, hint: str = "") -> None:
        where = f"line {line}, column {column}: " if line else ""
        super().__init__(where + problem, (Problem("", "invalid_expression", where + problem, hint=hint),))
        self.text = text
        self.line = line
        self.column = column
        self.problem = problem
        self.hint = hint


class EvaluationFailed(WorkflowError):
    """A valid expression has no value for these data. `values` are the keys that it reads, as shortened JSON."""

    reason = "GUARD_ERROR"

    def __init__(self, text: str, problem: str, values: Mapping[str, str]) -> None:
        super().__init__(f"{text!r} cannot be evaluated: {problem}", expression=text, problem=problem, **values)
        self.text = text
        self.problem = problem
        self.values: Mapping[str, str] = values


class Scope:
    """The data of one moment, converted once for several expressions.

    `reads` are the top-level keys that these expressions need (`reads_of`); None hands over everything. The data must
    be JSON values no deeper than DEPTH_MAX and must not change while the scope is in use.
    """

    __slots__ = ("_activation", "data", "item")

    def __init__(self, data: object, item: object = None, reads: frozenset[str] | None = None) -> None:
        self.data = data
        self.item = item
        visible = data
        if reads is not None and isinstance(data, dict):
            visible = {key: data[key] for key in reads if key in data}
        self._activation = _ENVIRONMENT.Activation({"data": visible, "item": item})


class Expression:
    """One compiled expression. Immutable; made by `compile_expression`."""

    __slots__ = ("_path", "_program", "_shape", "reads", "returns", "text")

    def __init__(self, text: str, program: cel.Expression, shape: Shape) -> None:
        self.text = text
        self.reads: frozenset[str] | None = shape.reads  # top-level keys of data; None = all of it
        self.returns: str = program.return_type().name()  # BOOL, INT, ... or DYN where the data decide
        self._program = program
        self._shape = shape
        self._path = tuple(text.strip().split(".")[1:]) if _PATH.fullmatch(text) else ()

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def holds(self, data: object, item: object = None) -> bool:
        """Whether it is true; anything but true and false raises EvaluationFailed."""
        found = self._looked_up(data)
        if found is True or found is False:
            return found
        return self.holds_in(Scope(data, item, self.reads))

    def value(self, data: object, item: object = None) -> object:
        """Its value as plain JSON (dict, list, str, int, float, bool, None); it may share parts with `data`."""
        found = self._looked_up(data)
        if found is not _ABSENT:
            return found
        return self.value_in(Scope(data, item, self.reads))

    def holds_in(self, scope: Scope) -> bool:
        """As `holds`, over a scope whose `reads` cover this expression."""
        found = self._run(scope)
        result = found.value()
        if result is True:
            return True
        if result is False:
            return False
        kind = found.type()
        if kind == cel.Type.ERROR:
            raise self._failed(scope, _plain_problem(str(result)))
        raise self._failed(scope, f"a condition must be true or false, this is {_KINDS.get(kind.name(), kind.name())}")

    def value_in(self, scope: Scope) -> object:
        """As `value`, over a scope whose `reads` cover this expression."""
        found = self._run(scope)
        try:
            return _Budget().plain(found, 0)
        except _NotJson as problem:
            raise self._failed(scope, str(problem)) from None

    def _looked_up(self, data: object) -> object:
        """What a plain path such as `data.order.total` names, without the evaluator: most mappings are one (0.3 us)."""
        if not self._path:
            return _ABSENT
        found = data
        for key in self._path:
            if type(found) is not dict or key not in found:
                return _ABSENT  # the evaluator says what is wrong
            found = found[key]
        return found

    def _run(self, scope: Scope) -> cel.Value:
        if self._shape.weighed:
            work = weigh(self._shape, scope.data, scope.item)
            if work > WORK_MAX:
                raise self._failed(
                    scope, f"it could take {work:,} steps over these data, the limit is {WORK_MAX:,}; use smaller lists"
                )
        try:
            return self._program.eval(scope._activation)
        except (RuntimeError, ValueError) as problem:  # the binding's way to report what it cannot express as a value
            raise self._failed(scope, _plain_problem(str(problem))) from None

    def _failed(self, scope: Scope, problem: str) -> EvaluationFailed:
        return EvaluationFailed(self.text, problem, shown_values(self, scope.data, scope.item))


@functools.lru_cache(maxsize=CACHE_MAX)
def compile_expression(text: str) -> Expression:
    """The expression of `text`; ExpressionInvalid names line, column and what was found there."""
    if not text.strip():
        raise ExpressionInvalid(text, 0, 0, "is empty", "write CEL, for example data.amount > 100")
    if len(text) > TEXT_MAX:
        problem = f"is {len(text):,} characters long, the limit is {TEXT_MAX:,}"
        raise ExpressionInvalid(text[:_SHOWN_CHARS], 0, 0, problem)
    if not text.isprintable() and any(ord(c) < 32 and c not in "\n\r\t" for c in text):
        raise ExpressionInvalid(text, 0, 0, "contains a control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ExpressionInvalid(text, 0, 0, "contains half of a surrogate pair") from None
    try:
        program = _ENVIRONMENT.compile(text)
    except RuntimeError as problem:
        raise _compile_problem(text, str(problem)) from None
    return Expression(text, program, shape_of(text))


def references(text: str) -> frozenset[str] | None:
    """The top-level keys of `data` that `text` reads; None when it may read any of them. `text` need not compile."""
    return shape_of(text).reads


def reads_of(expressions: Iterable[Expression]) -> frozenset[str] | None:
    """The keys that a Scope for all of `expressions` must hold; None = everything."""
    keys: set[str] = set()
    for expression in expressions:
        if expression.reads is None:
            return None
        keys |= expression.reads
    return frozenset(keys)


def shown_values(expression: Expression, data: object, item: object = None) -> dict[str, str]:
    """What `expression` reads, for people: `data.amount` -> `250`, `item` -> ...; absent keys say `(absent)`."""
    shown: dict[str, str] = {}
    if isinstance(data, dict):
        keys = sorted(data if expression.reads is None else expression.reads, key=str)
        for key in keys[:_SHOWN_KEYS]:
            shown[f"data.{key}"] = _shown(data[key]) if key in data else "(absent)"
    if expression._shape.uses_item:
        shown["item"] = _shown(item)
    return shown


# ---------------------------------------------------------------------------------------------- results


class _NotJson(Exception):
    """A result that is no JSON value, or too large a one."""


class _Budget:
    """Conversion of one result. Lists and maps may share parts, so their expansion can be exponential: it counts."""

    __slots__ = ("chars", "nodes")

    def __init__(self) -> None:
        self.nodes = NODES_MAX
        self.chars = RESULT_CHARS_MAX

    def plain(self, found: cel.Value, depth: int) -> object:
        self.nodes -= 1
        if self.nodes < 0:
            raise _NotJson(f"the result has more than {NODES_MAX:,} values")
        if depth > DEPTH_MAX:
            raise _NotJson(f"the result is nested deeper than {DEPTH_MAX}")
        result = found.value()
        if result is None or result is True or result is False:
            return result
        kind = type(result)
        if kind is int:
            if not _INT64_MIN <= result <= _INT64_MAX:
                raise _NotJson(f"the result {result} is outside the range of a 64-bit integer")
            return result
        if kind is float:
            if not math.isfinite(result):
                raise _NotJson(f"the result is {result}, which JSON cannot hold")
            return result
        if kind is str:
            if found.type() == cel.Type.ERROR:
                raise _NotJson(_plain_problem(result))
            return self.text(result)
        if kind is list:
            return [self.plain(element, depth + 1) for element in result]
        if kind is dict:
            converted: dict[str, object] = {}
            for key, element in result.items():
                if type(key) is not str:
                    raise _NotJson(f"a map in the result has the key {key!r}; JSON keys are texts")
                converted[self.text(key)] = self.plain(element, depth + 1)
            return converted
        if kind is dt.datetime:
            return result.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
        if kind is dt.timedelta:
            return f"{result.total_seconds():f}".rstrip("0").rstrip(".") + "s"
        name = found.type().name()
        raise _NotJson(f"the result is {_KINDS.get(name, name)}, which JSON cannot hold; convert it, as in string(...)")

    def text(self, text: str) -> str:
        self.chars -= len(text)
        if self.chars < 0:
            raise _NotJson(f"the result has more than {RESULT_CHARS_MAX:,} characters")
        return text


_KINDS: Final[Mapping[str, str]] = {
    "INT": "an integer",
    "UINT": "an unsigned integer",
    "DOUBLE": "a decimal number",
    "STRING": "a text",
    "BYTES": "a byte string",
    "NULL": "null",
    "TIMESTAMP": "a time",
    "DURATION": "a duration",
    "TYPE": "a type",
    "LIST<DYN>": "a list",
    "MAP<DYN, DYN>": "a map",
}


def _shown(found: object) -> str:
    try:
        text = msgspec.json.encode(found).decode()
    except (TypeError, ValueError, RecursionError):  # not JSON at all: the caller broke the contract, still be useful
        text = f"({type(found).__name__})"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


_STATUS: Final = re.compile(r"^[A-Z_]+: |\s*\[[A-Z_]+\]$")
_OVERLOAD: Final = re.compile(r"No matching overloads found : (\S+?)\((.*)\)$")
_OPERATORS: Final[Mapping[str, str]] = {"!_": "!", "-_": "-", "@in": "in", "_[_]": "[]"} | {
    f"_{sign}_": sign for sign in ("+", "-", "*", "/", "%", "<", "<=", ">", ">=")
}


def _plain_problem(text: str) -> str:
    """The evaluator's message without its status code, and with operators as the author writes them."""
    text = _STATUS.sub("", _STATUS.sub("", text))
    absent = re.fullmatch(r'Key not found in map : "(.*)"', text, re.DOTALL)
    if absent:
        return f"key {absent[1]!r} does not exist; test it with has(...) first"
    if "<jump_condition>" in text:
        return "the condition of ?: is neither true nor false"
    overload = _OVERLOAD.search(text)
    if overload:
        name = _OPERATORS.get(overload[1], overload[1])
        kinds = overload[2].replace("int64", "int")
        mixed = {"int", "double"} == set(kinds.split(", "))
        return f"{name!r} cannot take ({kinds})" + ("; convert one side with double(...)" if mixed else "")
    return text


# ---------------------------------------------------------------------------------------------- compile errors

_COMPILE_LINE: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")


def _compile_problem(text: str, raw: str) -> ExpressionInvalid:
    found = [(int(line), int(column), said) for line, column, said in _COMPILE_LINE.findall(raw)]
    if not found:
        if "recursion limit" in raw:
            return ExpressionInvalid(text, 0, 0, "is nested deeper than 32", "split it into several")
        return ExpressionInvalid(text, 0, 0, _STATUS.sub("", _STATUS.sub("", raw)))
    line, column, said = found[0]
    said = _STATUS.sub("", said).replace(" (in container '')", "")
    hint = ""
    if "max recursion depth" in said:
        hint = "a chain of + or . counts; split it into several"
        return ExpressionInvalid(text, 0, 0, "is nested deeper than 32", hint)
    unknown = re.match(r"undeclared reference to '(.*)'", said)
    if unknown:
        said = f"{unknown[1]!r} is not known here"
        hint = f"case data is read as data.{unknown[1]}; in instances there is also item"
    elif said.startswith("Syntax error"):
        said = re.sub(r" expecting \{.*", "", said).replace("'<EOF>'", "the end of the text")
    lines = text.split("\n")
    if 0 < line <= len(lines) and column > 0:
        said = f"{said}\n  {lines[line - 1]}\n  {' ' * (column - 1)}^"
    return ExpressionInvalid(text, max(line, 0), max(column, 0), said, hint)
