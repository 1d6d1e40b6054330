"""The README's tables that have a source in the code, written from that source.

`python -m tests.readme.tables` writes the generated ones into the README.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from knhk_sidecar.config import PREFIX, SETTINGS, SidecarConfig
from knhk_sidecar.identity.policy_document import BUILT_IN_ROLES, GRANTABLE
from knhk_sidecar.pipeline.permissions import PERMISSIONS
from knhk_sidecar.pipeline.resources import FIELDS
from knhk_workflow import StateStore, WorkflowEngine
from tests.patterns.golden import stories

README = Path(__file__).resolve().parents[2] / "README.md"

# Settings that only shape a feature which cannot be switched on in this version; they have no line in the table.
SHAPING_LATER = frozenset(
    {
        "kms_region", "kms_key_id", "kms_vault_url", "kms_vault_mount", "key_rotation_interval_hours",
        "primary_region", "receipt_sync_endpoints", "quorum_threshold",
        "slo_r1_p99_max_ns", "slo_w1_p99_max_ms", "slo_c1_p99_max_ms", "slo_admission_strategy", "slo_threshold",
        "promotion_environment", "promotion_traffic_percent", "auto_rollback_enabled",
    }
)  # fmt: skip


def patterns() -> Sequence[str]:
    """Every pattern that runs, what carries it, and the stories that prove it."""
    own = {story.pattern: story.name for story in stories() if story.own_net}
    others = Counter(story.pattern for story in stories() if not story.own_net)
    rows = []
    for view in WorkflowEngine(StateStore(":memory:")).list_patterns():
        if view.available:
            more = others[view.pattern_id]
            proved = f"`{own[view.pattern_id]}`" + (f" and {more} more" if more else "")
            rows.append(_row(str(view.pattern_id), view.name, view.construct, proved))
    return rows


def settings() -> Sequence[str]:
    """The settings that have an effect in this version."""
    defaults = {each.name: each.default for each in fields(SidecarConfig)}
    rows = []
    for name, about in SETTINGS.items():
        if about.later or name in SHAPING_LATER:
            continue
        names = ", ".join(f"`{each}`" for each in (PREFIX + name.upper(), *about.synonyms))
        default = defaults[name]
        shown = str(default).lower() if isinstance(default, bool) else str(default) if default != () else ""
        value = f"{shown} {about.unit}".strip() if shown else "empty"
        rows.append(_row(names, value, about.doc))
    return rows


def permissions() -> Sequence[str]:
    """The permissions, the calls that need each, and the built-in roles that have it besides admin."""
    rows = []
    for permission in GRANTABLE:
        calls = dict.fromkeys(path.rpartition("/")[2] for path, needed in PERMISSIONS.items() if needed is permission)
        roles = [name for name, role in BUILT_IN_ROLES.items() if permission in role.permissions and name != "admin"]
        rows.append(_row(f"`{permission.value}`", ", ".join(calls), ", ".join(roles)))
    return rows


def resources() -> Sequence[str]:
    """What requests say about workflows, cases and patterns, and which calls say it."""
    told: dict[str, list[str]] = {}
    for name, read in FIELDS.items():
        told.setdefault(read, []).append(name)
    return [_row(f"`{read.partition(' (')[0]}`", ", ".join(names)) for read, names in told.items()]


def table(name: str, text: str | None = None) -> Sequence[str]:
    """The rows of the README's table with this name, without its head."""
    rows = _marked(name).search(README.read_text(encoding="utf-8") if text is None else text)
    assert rows is not None, f"the README has no table {name!r}"
    return [line for line in rows["rows"].splitlines() if line]


def cells(name: str) -> Sequence[tuple[str, ...]]:
    """The rows of a table, cut into cells."""
    return [tuple(cell.strip() for cell in row.strip("|").split(" | ")) for row in table(name)]


GENERATED = {"patterns": patterns, "settings": settings, "permissions": permissions, "resources": resources}


def _row(*cell: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cell) + " |"


def _marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<head><!-- {name}:[^\n]*-->\n\|[^\n]*\n\|[-|]+\n)(?P<rows>(?:\|[^\n]*\n)*)(?=<!-- end -->)")


def _write(name: str, rows: Iterable[str]) -> None:
    text = README.read_text(encoding="utf-8")
    found = _marked(name).search(text)
    assert found is not None, name
    README.write_text(
        text[: found.start("rows")] + "".join(f"{row}\n" for row in rows) + text[found.end("rows") :], encoding="utf-8"
    )


if __name__ == "__main__":
    for title, make in GENERATED.items():
        _write(title, make())
