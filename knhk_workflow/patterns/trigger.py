"""Trigger: patterns 23 and 24."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import OUTSIDE, Category, Pattern, moves, path

_GROUP: Final[Category] = "Trigger"
_AB: Final = ("start", "A", "B", "end")

TRIGGER: Final = (
    Pattern(
        23,
        "Transient Trigger",
        _GROUP,
        "A signal that acts only when a task waits for it at that moment, and is lost otherwise.",
        "trigger: {name, mode: transient}",
        "",
        "Both forms: one waiting instance, and several, of which one signal wakes one.",
        "Russell et al. 2006: partial where a signal can only start a process. The oldest activation is woken first. "
        "A task waits from when its join is enabled, also while the case is suspended or its lock is held; then the "
        "signal is taken and its effect comes later.",
        net={"tasks": {"A": OUTSIDE, "B": {"trigger": {"name": "t", "mode": "transient"}}}, "flows": path(*_AB)},
        script=moves("trigger t", "complete A", "trigger t"),
    ),
    Pattern(
        24,
        "Persistent Trigger",
        _GROUP,
        "A signal that is kept until a task consumes it.",
        "trigger: {name, mode: persistent}",
        "",
        "Signals are kept per case, in order, and survive a restart.",
        "Russell et al. 2006: partial where a signal is kept for a limited time only. Signals of one name are taken in "
        "the order in which they came; a task without incoming flow is started by each of them.",
        net={"tasks": {"A": OUTSIDE, "B": {"trigger": {"name": "t", "mode": "persistent"}}}, "flows": path(*_AB)},
        script=moves("trigger t", "complete A"),
    ),
)
