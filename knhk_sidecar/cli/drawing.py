"""A workflow's net as text: boxes from left to right, lines between them.

Layered drawing (Sugiyama, Tagawa, Toda 1981) in its plainest form: cycles are opened at the edges that lead back,
every node stands one layer behind its furthest predecessor, long edges pass through empty cells, and layers are
ordered by the mean of their neighbours. Edges that lead back, guards and defaults are listed below. A net that does
not fit is listed only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

NODES_MAX: Final = 60  # beyond it nobody reads a picture made of characters
SWEEPS: Final = 4  # orderings settle within three
ROW: Final = 4  # lines from one box's middle to the next one's

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_GLYPHS: Final = {
    0: " ", _UP: "│", _DOWN: "│", _LEFT: "─", _RIGHT: "─",
    _UP | _DOWN: "│", _LEFT | _RIGHT: "─",
    _UP | _LEFT: "┘", _UP | _RIGHT: "└", _DOWN | _LEFT: "┐", _DOWN | _RIGHT: "┌",
    _UP | _DOWN | _LEFT: "┤", _UP | _DOWN | _RIGHT: "├",
    _LEFT | _RIGHT | _UP: "┴", _LEFT | _RIGHT | _DOWN: "┬",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flow:
    """One arrow of the net."""

    source: str
    target: str
    note: str = ""


@dataclass(slots=True)
class Net:
    """What is drawn: nodes with the lines in their boxes, and flows."""

    nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    flows: list[Flow] = field(default_factory=list)


def drawing_of(document: bytes, width: int) -> str:
    """The picture of a native workflow document (JSON), at most `width` columns wide, its sub-nets below it."""
    parsed: object = json.loads(document)
    if not isinstance(parsed, Mapping):
        return ""
    parts = [_picture(_net_of(parsed), width)]
    nets = parsed.get("nets")
    if isinstance(nets, Mapping):
        parts += [
            f"net {name}\n{_picture(_net_of(net), width)}" for name, net in nets.items() if isinstance(net, Mapping)
        ]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------------------- reading
def _net_of(document: Mapping[str, object]) -> Net:
    net = Net()
    net.nodes["start"] = ("start",)
    for name, task in _named(document.get("tasks")):
        net.nodes[name] = (name, *_notes(task))
    for name, _ in _named(document.get("conditions")):
        net.nodes.setdefault(name, (f"({name})",))
    net.nodes["end"] = ("end",)
    for each in _objects(document.get("flows")):
        source, target = str(each.get("from", "")), str(each.get("to", ""))
        notes = [f"when {each['when']}"] if each.get("when") else []
        notes += ["otherwise"] if each.get("default") else []
        for end in (source, target):
            net.nodes.setdefault(end, (end,))
        net.flows.append(Flow(source, target, ", ".join(notes)))
    return net


def _named(value: object) -> Iterable[tuple[str, Mapping[str, object]]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name), inner if isinstance(inner, Mapping) else {}
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            if isinstance(each, Mapping):
                yield str(each.get("id", each.get("name", ""))), each
            else:
                yield str(each), {}


def _objects(value: object) -> Iterable[Mapping[str, object]]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            if isinstance(each, Mapping):
                yield each


def _notes(task: Mapping[str, object]) -> Iterable[str]:
    words = []
    for key in ("join", "split"):
        kind = task.get(key)
        if kind and kind != "none":
            words.append(f"{_word(kind)}-{key}")
    if task.get("instances"):
        words.append("many")
    if words:
        yield " ".join(words)
    if task.get("required_roles"):
        yield "for " + ", ".join(str(role) for role in _list(task["required_roles"]))
    if task.get("net"):
        yield f"net {task['net']}"
    if task.get("compensate"):
        yield f"undone by {task['compensate']}"


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _word(kind: object) -> str:
    return next(iter(kind), "") if isinstance(kind, Mapping) else str(kind)


# ------------------------------------------------------------------------------------------------------------- picture
def _picture(net: Net, width: int) -> str:
    back = _back_edges(net)
    notes = [f"  {flow.source} -> {flow.target}  {flow.note}" for flow in net.flows if flow.note]
    notes += [f"  {net.flows[index].source} -> {net.flows[index].target}  leads back" for index in sorted(back)]
    if len(net.nodes) <= NODES_MAX:
        lines = _draw(net, back)
        if lines and max(map(len, lines)) <= width:
            return "\n".join([*lines, *notes])
    return "\n".join(
        f"  {flow.source} -> {flow.target}" + (f"  {flow.note}" if flow.note else "") for flow in net.flows
    )


def _back_edges(net: Net) -> frozenset[int]:
    """The flows that close a cycle, seen from the start."""
    leaving: dict[str, list[int]] = {name: [] for name in net.nodes}
    for index, flow in enumerate(net.flows):
        leaving[flow.source].append(index)
    back: set[int] = set()
    state: dict[str, int] = {}  # 1: on the way, 2: done
    for root in net.nodes:
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(leaving[root]))]
        while stack:
            name, flows = stack[-1]
            following = next(flows, None)
            if following is None:
                state[name] = 2
                stack.pop()
                continue
            target = net.flows[following].target
            if state.get(target) == 1:
                back.add(following)
            elif target not in state:
                state[target] = 1
                stack.append((target, iter(leaving[target])))
    return frozenset(back)


def _layers(net: Net, back: frozenset[int]) -> dict[str, int]:
    """The layer of each node: one more than its furthest predecessor; the end stands last."""
    forward = [flow for index, flow in enumerate(net.flows) if index not in back]
    layer = dict.fromkeys(net.nodes, 0)
    for _ in net.nodes:
        changed = False
        for flow in forward:
            if layer[flow.target] <= layer[flow.source]:
                layer[flow.target] = layer[flow.source] + 1
                changed = True
        if not changed:
            break
    layer["end"] = max(layer.values())
    if any(flow.source == "end" for flow in forward) or any(
        layer[name] == layer["end"] for name in layer if name != "end"
    ):
        layer["end"] += 1
    return layer


def _draw(net: Net, back: frozenset[int]) -> list[str]:
    layer = _layers(net, back)
    columns: list[list[str]] = [[] for _ in range(max(layer.values()) + 1)]
    for name, index in layer.items():
        columns[index].append(name)
    edges: list[list[tuple[str, str]]] = [[] for _ in columns]  # edges[i]: from column i to i+1
    for number, flow in enumerate(net.flows):
        if number in back or layer[flow.target] <= layer[flow.source]:
            continue
        before = flow.source
        for index in range(layer[flow.source] + 1, layer[flow.target]):
            passing = f"\0{number}.{index}"
            columns[index].append(passing)
            edges[index - 1].append((before, passing))
            before = passing
        edges[layer[flow.target] - 1].append((before, flow.target))
    _order(columns, edges)
    return _paint(net, columns, edges)


def _order(columns: list[list[str]], edges: list[list[tuple[str, str]]]) -> None:
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        indices = range(1, len(columns)) if forward else range(len(columns) - 2, -1, -1)
        for index in indices:
            near = columns[index - 1] if forward else columns[index + 1]
            place = {name: float(position) for position, name in enumerate(near)}
            pairs = edges[index - 1] if forward else [(target, source) for source, target in edges[index]]
            neighbours: dict[str, list[float]] = {}
            for other, name in pairs:
                neighbours.setdefault(name, []).append(place[other])
            old = {name: position for position, name in enumerate(columns[index])}
            mean = {
                name: sum(found) / len(found) if (found := neighbours.get(name)) else float(old[name])
                for name in columns[index]
            }
            columns[index] = [name for _, _, name in sorted((mean[name], old[name], name) for name in columns[index])]


@dataclass(slots=True)
class _Canvas:
    lines: dict[tuple[int, int], int] = field(default_factory=dict)
    letters: dict[tuple[int, int], str] = field(default_factory=dict)

    def line(self, x: int, y: int, bits: int) -> None:
        self.lines[x, y] = self.lines.get((x, y), 0) | bits

    def across(self, left: int, right: int, y: int) -> None:
        for x in range(left, right):
            self.line(x, y, _RIGHT)
            self.line(x + 1, y, _LEFT)

    def down(self, top: int, bottom: int, x: int) -> None:
        for y in range(top, bottom):
            self.line(x, y, _DOWN)
            self.line(x, y + 1, _UP)

    def text(self, x: int, y: int, text: str) -> None:
        for offset, letter in enumerate(text):
            self.letters[x + offset, y] = letter

    def rows(self) -> list[str]:
        cells = [*self.lines, *self.letters]
        height, width = max(y for _, y in cells) + 1, max(x for x, _ in cells) + 1
        top = min(y for _, y in cells)
        return [
            "".join(self.letters.get((x, y)) or _GLYPHS[self.lines.get((x, y), 0)] for x in range(width)).rstrip()
            for y in range(top, height)
        ]


def _paint(net: Net, columns: Sequence[Sequence[str]], edges: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    canvas = _Canvas()
    tallest = max(len(lines) for lines in net.nodes.values())
    pitch = max(ROW, tallest + 3)
    deepest = max(len(column) for column in columns)
    middle: dict[str, int] = {}
    for column in columns:
        shift = (deepest - len(column)) * pitch // 2
        for position, name in enumerate(column):
            middle[name] = shift + position * pitch + pitch // 2
    x = 2
    for index, column in enumerate(columns):
        width = max((len(line) for name in column for line in net.nodes.get(name, ())), default=1) + 4
        for name in column:
            if name in net.nodes:
                _box(canvas, x, middle[name], width, net.nodes[name])
            else:
                canvas.across(x - 1, x + width, middle[name])
        x += width
        if index + 1 < len(columns):
            x = _channel(canvas, x, edges[index], middle, net)
    return canvas.rows()


def _box(canvas: _Canvas, x: int, y: int, width: int, lines: Sequence[str]) -> None:
    top = y - (len(lines) - 1) // 2 - 1
    bottom = top + len(lines) + 1
    canvas.text(x, top, "┌" + "─" * (width - 2) + "┐")
    for offset, line in enumerate(lines):
        canvas.text(x, top + 1 + offset, f"│{line:^{width - 2}}│")
    canvas.text(x, bottom, "└" + "─" * (width - 2) + "┘")


def _channel(canvas: _Canvas, x: int, pairs: Sequence[tuple[str, str]], middle: Mapping[str, int], net: Net) -> int:
    """Draws the edges between two columns, each source bending in a track of its own. Answers where the next column
    begins."""
    bending = sorted(
        {source for source, target in pairs if middle[source] != middle[target]}, key=lambda name: middle[name]
    )
    track = {source: x + 1 + 2 * position for position, source in enumerate(bending)}
    end = x + 2 * len(bending) + 3
    for source, target in pairs:
        start, stop = middle[source], middle[target]
        if start == stop:
            canvas.across(x - 1, end - 1, start)
        else:
            canvas.across(x - 1, track[source], start)
            canvas.down(min(start, stop), max(start, stop), track[source])
            canvas.across(track[source], end - 1, stop)
        if target in net.nodes:
            canvas.text(end - 1, stop, "▶")
        else:
            canvas.across(end - 1, end, stop)
    return end
