"""What an expression may cost: read off its source text, then bounded with the sizes of the data that it reads.

The evaluator cannot be interrupted, so an expression is weighed before it runs. The bound is rough and errs upwards;
it only has to tell a rule over order lines from one that goes through the same ten thousand values ten thousand times.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_ITERATIONS_MAX: Final = 10_000  # the evaluator's own budget for one evaluation
_CHARS_PER_NODE: Final = 32  # one pass over 32 characters costs what one comparison of two values costs
_DEPTH_MAX: Final = 128  # of data that are measured; what an expression yields is never deeper than 64
_MATCH_FACTOR: Final = 16  # a regular expression (RE2, linear) against one plain pass over the text
_JOINS_FREE: Final = 3  # up to so many + the result is not worth weighing

_TOKEN: Final = re.compile(
    r"""(?P<skip>\s+|//[^\n]*)
    |(?P<text>[rRbB]{0,2}(?:\"\"\"(?:[^\\]|\\.)*?\"\"\"|'''(?:[^\\]|\\.)*?'''|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*|`[^`\n]*`)
    |(?P<number>[0-9][0-9A-Za-z_.]*)
    |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)
_COMPREHENSIONS: Final = frozenset({"all", "exists", "exists_one", "map", "filter"})
_BUILDING: Final = frozenset({"map", "filter"})
_CALL, _COMPREHENSION, _LITERAL, _INDEX = range(4)  # kinds of open brackets
_PLAIN_KEY: Final = re.compile(r"""(?:"([^"\\]*)"|'([^'\\]*)')""")


class Shape(msgspec.Struct, frozen=True):
    """What can be said of a source text without evaluating it."""

    reads: frozenset[str] | None
    inner: tuple[str | None, ...]  # reads inside comprehension bodies, one entry per occurrence; None = all data
    uses_item: bool
    depth: int  # nesting of comprehensions
    building: int  # comprehensions that build a list
    mapping: int  # those of them that put elements together
    chained: int  # comprehensions over what is no plain path: f(...).all(...)
    names: int  # occurrences of names inside bodies
    joins: int  # + signs
    literals: int  # elements of list literals, at most
    costly: int  # calls of matches

    @property
    def weighed(self) -> bool:
        return self.depth > 0 or self.joins > _JOINS_FREE


def shape_of(text: str) -> Shape:
    tokens = [(m.lastgroup or "", m.group()) for m in _TOKEN.finditer(text) if m.lastgroup != "skip"]
    reads: set[str] = set()
    everything = uses_item = False
    inner: list[str | None] = []
    names = building = deepest = joins = literals = costly = 0
    mapping = chained = 0
    frames: list[int] = []
    depth = 0
    for at, (kind, word) in enumerate(tokens):
        before = tokens[at - 1][1] if at else ""
        after = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind == "sign":
            if word in "([{":
                operand = bool(before) and (tokens[at - 1][0] != "sign" or before in ")]}")
                frame = _INDEX if operand and word == "[" else _LITERAL
                if word == "(":
                    selected = at >= 2 and tokens[at - 2][1] == "."
                    frame = _COMPREHENSION if selected and before in _COMPREHENSIONS else _CALL
                    chained += frame == _COMPREHENSION and at >= 3 and tokens[at - 3][1] == ")"
                frames.append(frame)
                depth += frame == _COMPREHENSION
                deepest = max(deepest, depth)
                literals += frame == _LITERAL
            elif word in ")]}" and frames:
                depth -= frames.pop() == _COMPREHENSION
            joins += word == "+"
            literals += word == "," and bool(frames) and frames[-1] == _LITERAL
            continue
        if kind != "name":
            continue
        names += depth > 0
        selected = before == "." and at >= 2 and (tokens[at - 2][0] != "sign" or tokens[at - 2][1] in ")]}")
        building += selected and word in _BUILDING and after == "("
        mapping += selected and word == "map" and after == "("
        costly += word == "matches"
        uses_item = uses_item or (word == "item" and not selected)
        if word != "data" or selected:
            continue
        key = _selected_key(tokens, at)
        if key is None:
            everything = True
        else:
            reads.add(key)
        if depth:
            inner.append(key)
    return Shape(
        reads=None if everything else frozenset(reads),
        inner=tuple(inner),
        uses_item=uses_item,
        depth=deepest,
        building=building,
        mapping=mapping,
        chained=chained,
        names=names,
        joins=joins,
        literals=literals,
        costly=costly,
    )


def _selected_key(tokens: list[tuple[str, str]], at: int) -> str | None:
    """The key in `data.key` or `data["key"]` at word `at`; None when something else is done with `data`."""
    following = tokens[at + 1 : at + 4] + [("", "")] * 3
    (_, first), (kind, second), (_, third) = following[:3]
    if first == "." and kind == "name" and third != "(":
        return second.strip("`")
    if first == "[" and kind == "text" and third == "]":
        plain = _PLAIN_KEY.fullmatch(second)
        if plain:
            return plain[1] if plain[1] is not None else plain[2]
    return None


def weigh(shape: Shape, data: object, item: object) -> int:
    """An upper bound of the work, in comparisons of two values, from the shape and the sizes of what is read.

    Let W be the size of all that is read, L its longest list or map, E its heaviest element. One comprehension runs L
    times, a nest of d at most min(L^d, budget); its body touches per run what it names: keys by their size, elements
    by E. Building a list of n copies it n times (measured), hence n squared. Texts that are joined count once per +.
    """
    weights: dict[str, _Weight] = {}
    if isinstance(data, dict):
        for key in data if shape.reads is None else shape.reads & data.keys():
            weights[key] = _measure(data[key])
    if shape.uses_item:
        weights["\0item"] = _measure(item)
    total = 1 + sum(weight.total for weight in weights.values())
    growth = 1 + shape.joins
    work = total * growth * growth * (1 + _MATCH_FACTOR * shape.costly)
    if not shape.depth:
        return work
    longest = (max([len(weights), *(weight.longest for weight in weights.values())]) + shape.literals) * growth
    runs: int = min(longest**shape.depth, _ITERATIONS_MAX)
    own = not shape.inner and not shape.uses_item  # bodies name nothing but the elements that they are run for
    if own and not shape.literals:
        runs = min(runs, total * growth * shape.depth)
    heaviest = max((weight.heaviest for weight in weights.values()), default=1)
    if shape.reads is None:  # data itself may be the map that is gone through
        heaviest = max([heaviest, *(weight.total for weight in weights.values())])
    heaviest *= growth
    if shape.literals or (shape.mapping and (not own or (shape.chained and shape.mapping > 1))):
        # elements may have been put together from anything
        heaviest = total
    body = sum(total if key is None else weights[key].total if key in weights else 1 for key in shape.inner)
    if shape.uses_item:
        body += weights["\0item"].total
    if shape.depth > 1 or shape.building or shape.literals or shape.reads is None:
        body += heaviest * shape.names
    work += runs * body * (1 + _MATCH_FACTOR * shape.costly)
    work += 2 * shape.building * (longest * longest if shape.depth == 1 else runs * longest)
    return work


class _Weight(msgspec.Struct):
    """Of one value: all its nodes, its longest list or map, and its heaviest element of one."""

    total: int
    longest: int
    heaviest: int


def _measure(value: object, depth: int = 0) -> _Weight:
    kind = type(value)
    if kind is str:
        return _Weight(1 + len(value) // _CHARS_PER_NODE, 0, 0)  # type: ignore[arg-type]  # kind is str
    if depth > _DEPTH_MAX or not isinstance(value, dict | list):
        return _Weight(1, 0, 0)
    total, longest, heaviest = 1, len(value), 0
    for element in value.values() if isinstance(value, dict) else value:
        if type(element) in _SCALARS:
            total += 1
            continue
        part = _measure(element, depth + 1)
        total += part.total
        longest = max(longest, part.longest)
        heaviest = max(heaviest, part.total, part.heaviest)
    if isinstance(value, dict):
        total += sum(len(key) for key in value) // _CHARS_PER_NODE
    return _Weight(total, longest, max(heaviest, 1))


_SCALARS: Final = frozenset({int, float, bool, type(None)})
