"""Trigger: patterns 23 and 24."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import Category, Pattern

_GROUP: Final[Category] = "Trigger"

TRIGGER: Final = (
    Pattern(
        23,
        "Transient Trigger",
        _GROUP,
        "A signal that acts only when a task waits for it at that moment, and is lost otherwise.",
        "trigger: {name, mode: transient}",
        "",
        "Both forms: one waiting instance, and several, of which one signal wakes one.",
        "Russell et al. 2006: partial where a signal can only start a process. The oldest activation is woken first.",
    ),
    Pattern(
        24,
        "Persistent Trigger",
        _GROUP,
        "A signal that is kept until a task consumes it.",
        "trigger: {name, mode: persistent}",
        "",
        "Signals are kept per case, in order, and survive a restart.",
        "Russell et al. 2006: partial where a signal is kept for a limited time only.",
    ),
)
