"""Golden stories: a net, what the outside does, and what must follow, compared word for word.

    pattern 3: Synchronization          the story of the catalogue's own net, or `about 3: ...` for another net
    traps: 3.a, 3.b                     which traps of the conformance tables it proves
    not nested: why                     (where a net within a net must tell another story)
    not in a loop: why                  (where a second round must)
    Prose.

    net: start -> A; A and-split -> B, C; B, C and-join -> D; D -> end

    > start                             A offered
    > complete A {"ok": true}           A completed, B offered, C offered
    > 100 times: complete B             counted outcomes
    # prose between steps

Commands: start [json] | start, claim, release, complete, fail, skip <work> [json] [by somebody] | suspend, resume,
cancel | update <json> | resolve <task or net> retry, skip, complete or fail_case [json] | trigger <name> [json] |
add_instance <task> [json], close_instances, complete_instances, cancel_instances, cancel_task <task> | advance
<duration> (every other command takes a second). A task is B, or
B(2) for its second enabling; work is B, B(2), or B#3 for an instance. Questions: explain <task>, data, holds,
every order [json] [with <signal>, <signal>].
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from knhk_workflow import WorkflowError
from knhk_workflow.core import commands as c
from knhk_workflow.core.case import encode_state
from knhk_workflow.model.fields import duration
from tests.patterns import notation, orders
from tests.patterns.book import Book, counted
from tests.patterns.players import CorePlayer, Player

STORIES = Path(__file__).parent / "stories"
COLUMN = 34  # where outcomes begin
WIDTH = 118

Document = dict[str, object]

_HEAD = re.compile(r"(pattern|about) (\d+): (.+)")
_TIMES = re.compile(r"(?:(\d+) times|counted): (.+)")
_BY = re.compile(r" by (\w+)$")


class Step(msgspec.Struct):
    """A command with its expected outcome, or prose."""

    command: str
    outcome: str = ""
    prose: str = ""


class Story(msgspec.Struct):
    """One file of `stories`."""

    path: Path
    pattern: int
    own_net: bool
    traps: tuple[str, ...]
    head: list[str]
    document: Document
    nests: bool
    steps: list[Step]

    @property
    def name(self) -> str:
        """The file's name, for test ids."""
        return self.path.stem


def stories() -> list[Story]:
    """Every story, by name."""
    return [read(path) for path in sorted(STORIES.glob("*.txt"))]


def read(path: Path) -> Story:
    """The story in a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith(">"))
    head = lines[:begin]
    found = _HEAD.fullmatch(head[0])
    assert found, f"{path.name} begins with `pattern N: ...` or `about N: ...`"
    traps = next((line.partition(":")[2] for line in head if line.startswith("traps:")), "")
    nets = [line for line in head if line.startswith(("net:", "sub-net "))]
    return Story(
        path,
        int(found[2]),
        found[1] == "pattern",
        tuple(notation.names(traps)),
        head,
        notation.document(path.stem.replace(" ", "-"), nets),
        not any(line.startswith("not nested:") for line in head),
        list(_steps(lines[begin:])),
    )


def _steps(lines: list[str]) -> Iterator[Step]:
    step: Step | None = None
    for line in lines:
        if line.startswith(">"):
            if step:
                yield step
            command, _, outcome = line[1:].strip().partition("   ")
            step = Step(command.strip(), outcome.strip())
        elif line.startswith(" ") and step:
            step.outcome = f"{step.outcome} {line.strip()}".strip()
        else:
            if step:
                yield step
            step = None
            yield Step("", prose=line)
    if step:
        yield step


def write(story: Story, outcomes: list[str]) -> str:
    """The story's text with these outcomes, one for each command."""
    lines = list(story.head)
    told = iter(outcomes)
    for step in story.steps:
        if not step.command:
            lines.append(step.prose)
            continue
        head = f"> {step.command}".ljust(COLUMN - 1) + " "
        if not head.endswith("   "):
            head = head.rstrip() + "   "
        if len(head) > COLUMN + 12:
            lines.append(head.rstrip())
            head = " " * COLUMN
        wrapped = textwrap.wrap(
            head + next(told),
            WIDTH,
            subsequent_indent=" " * COLUMN,
            drop_whitespace=True,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.extend(wrapped)
    return "\n".join(lines) + "\n"


class Telling:
    """One story told by one player: what followed each command, as sentences."""

    def __init__(self, story: Story, player: Player, book: Book, document: Document) -> None:
        self.story = story
        self.player = player
        self.book = book
        self.document = document
        self.data = b"{}"

    async def tell(self, command: str) -> list[str]:
        """What follows a command, sentence by sentence."""
        times = _TIMES.fullmatch(command)
        if times:
            return [sentence for _ in range(int(times[1] or 1)) for sentence in await self._one(times[2])]
        return await self._one(command)

    async def _one(self, command: str) -> list[str]:
        verb, _, rest = command.partition(" ")
        if verb == "start" and (not rest or rest.startswith("{")):
            return self.book.read(await self.player.begin(self.document, self._begun_with(rest)))
        if verb == "advance":
            seconds = duration(rest)
            assert seconds is not None, f"{rest!r} is no duration"
            return self.book.read(await self.player.advance(seconds))
        try:
            return self.book.read(await self.player.make(self._command(verb, rest)))
        except WorkflowError as error:
            return [f"refused: {error}"]

    def _begun_with(self, text: str) -> bytes:
        self.data = text.encode() or b"{}"
        return self.data

    def _command(self, verb: str, rest: str) -> c.Command:
        if verb in CASE_COMMANDS:
            return CASE_COMMANDS[verb](rest)
        who = _BY.search(rest)
        owner = who[1] if who else ""
        target, _, data = (rest[: who.start()] if who else rest).partition(" ")
        if verb == "resolve":
            action, _, data = data.partition(" ")
            return c.ResolveIncident(self.book.incident(target), action, data.encode())  # type: ignore[arg-type]  # stories are trusted
        if verb == "trigger":
            return c.Signal(target, data.encode())
        if verb in TASK_COMMANDS:
            return TASK_COMMANDS[verb](*self.book.activation(target), data.encode())
        known = self.book.item(target)
        # Work that does not exist yet: the id that it is going to have.
        ref = known.ref if known else c.ItemRef(self.book.activations + 1, 1, 1)
        if verb == "complete":
            return c.CompleteItem(ref, data.encode(), owner)
        if verb == "fail":
            code, _, message = data.partition(" ")
            return c.FailItem(ref, code or "failed", message, owner)
        if verb in ("start", "claim"):
            return c.StartItem(ref, owner) if verb == "start" else c.ClaimItem(ref, owner)
        if verb == "skip":
            return c.SkipItem(ref)
        assert verb == "release", f"no story knows how to {verb}"
        return c.ReleaseItem(ref)


def shown(command: str, sentences: list[str]) -> str:
    """The outcome of a command as text."""
    return ", ".join(counted(sentences) if _TIMES.fullmatch(command) else sentences) or "nothing"


CASE_COMMANDS: dict[str, Callable[[str], c.Command]] = {
    "suspend": c.SuspendCase,
    "resume": lambda _: c.ResumeCase(),
    "cancel": c.CancelCase,
    "update": lambda data: c.UpdateCaseData(data.encode()),
}
TASK_COMMANDS: dict[str, Callable[[str, int, bytes], c.Command]] = {
    "add_instance": c.AddInstance,
    "close_instances": lambda task, activation, _: c.CloseInstances(task, activation),
    "complete_instances": lambda task, activation, _: c.CompleteInstances(task, activation),
    "cancel_instances": lambda task, activation, _: c.CancelInstances(task, activation),
    "cancel_task": lambda task, activation, _: c.CancelTask(task, activation),
}
QUESTIONS = ("explain", "data", "holds", "every")


def question(command: str) -> bool:
    """Whether a command only asks."""
    return command.split(" ", 1)[0] in QUESTIONS


async def answer(telling: Telling, command: str) -> list[str] | None:
    """The answer to a question; None where this player cannot know it."""
    verb, _, rest = command.partition(" ")
    player = telling.player
    if verb == "explain":
        explanation = await player.explain()
        return [task.sentence for task in explanation.tasks if task.task_id == rest] or [explanation.sentence]
    if verb == "data":
        return [(await player.data()).decode()]
    if not isinstance(player, CorePlayer):
        return None
    if verb == "every":
        text, _, signals = rest.removeprefix("order").partition(" with ")
        return [orders.told(telling.document, text.strip().encode() or b"{}", tuple(notation.names(signals)))]
    case, _ = player.held()
    size = 1 << len(encode_state(case)).bit_length()
    counts = f"{len(case.nets)} nets, {len(case.activations)} activations, {case.open_items} items"
    return [f"{counts}, {case.tokens()} tokens, {len(case.incidents)} incidents; state below {size} bytes"]


async def tell(story: Story, player: Player) -> list[str]:
    """The outcomes of a story, one text for each command. A question that the player cannot answer repeats it."""
    telling = Telling(story, player, Book(), story.document)
    outcomes: list[str] = []
    try:
        for step in story.steps:
            if step.command:
                told = await (answer if question(step.command) else Telling.tell)(telling, step.command)
                outcomes.append(step.outcome if told is None else shown(step.command, told))
    finally:
        await player.close()
    return outcomes


async def tell_nested(story: Story, player: Player) -> list[str]:
    """The same, with the story's net as a sub-net of another one. Questions repeat the story."""
    telling = Telling(story, player, Book(root=2), notation.nested(story.document))
    try:
        return [
            step.outcome if question(step.command) else shown(step.command, await telling.tell(step.command))
            for step in story.steps
            if step.command
        ]
    finally:
        await player.close()


def can_loop(story: Story) -> bool:
    """Whether the net can be led from its end back to its start: it completes by one token in its end."""
    flows = story.document["flows"]
    assert isinstance(flows, list)
    told = [step for step in story.steps if step.command and not question(step.command)]
    return (
        not any(line.startswith("not in a loop:") for line in story.head)
        and story.document.get("termination") != "explicit"
        and told[-1].outcome.endswith("case completed")
        and all(any(flow["from"] == task for flow in flows) for task in _tasks(story.document))
        and any(flow["to"] == "end" for flow in flows)
        and not any(step.command.startswith("resolve net") for step in told)
    )


def _tasks(document: Document) -> list[str]:
    tasks = document["tasks"]
    assert isinstance(tasks, dict)
    return list(tasks)


async def tell_looped(story: Story, player: Player, rounds: int = 2) -> list[list[str]]:
    """The outcomes of each round of the story's net run several times in one case, as if each were a case."""
    book = Book(hidden=("enter", "again"))
    telling = Telling(story, player, book, notation.looped(story.document, rounds))
    asked = [step for step in story.steps if step.command]
    found: list[list[str]] = []
    opening: list[str] = []
    try:
        for number in range(1, rounds + 1):
            outcomes: list[str] = []
            for step in asked:
                if question(step.command):
                    outcomes.append(step.outcome)
                    continue
                if _begins(step.command):
                    if number == 1:
                        data = step.command.removeprefix("counted:").strip().removeprefix("start").strip()
                        merged = {**msgspec.json.decode(data.encode() or b"{}"), "round": 1}
                        opening = await telling.tell(f"start {msgspec.json.encode(merged).decode()}")
                    outcomes.append(shown(step.command, opening))
                    continue
                before = book.round
                told = await telling.tell(step.command)
                if book.round > before and number < rounds:
                    told = [*told[: len(told) - len(opening)], "case completed"]
                outcomes.append(shown(step.command, told))
            found.append(outcomes)
    finally:
        await player.close()
    return found


def _begins(command: str) -> bool:
    words = command.removeprefix("counted:").split()
    return words[0] == "start" and (len(words) == 1 or words[1].startswith("{"))
