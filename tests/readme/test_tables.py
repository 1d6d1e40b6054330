"""The README's tables agree with the code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.api.faults import FAULTS, answer
from knhk_sidecar.api.wire import limits
from knhk_sidecar.config import SETTINGS, ConfigError, SidecarConfig, load
from tests.readme.tables import GENERATED, README, SHAPING_LATER, cells, table


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_a_generated_table_is_up_to_date(name: str) -> None:
    assert table(name) == GENERATED[name](), "run `python -m tests.readme.tables`"


def test_every_error_has_its_line_and_no_line_is_made_up() -> None:
    kinds = set(FAULTS)
    known = set()
    for kind in kinds:
        line = answer(kind.__new__(kind))
        known.add((line.code.name, str(line.http), kind.reason))
    told = [row[:3] for row in cells("errors")]
    assert sorted(told) == sorted(known)


def test_the_limits_are_those_that_the_daemon_tells() -> None:
    config = SidecarConfig()
    told = limits(config.max_message_bytes, config.max_streams_per_connection)
    for name, value, _ in cells("limits"):
        assert getattr(told, name.strip("`")) == int(value), name


def test_every_setting_is_in_the_table_or_belongs_to_a_later_feature() -> None:
    told = " ".join(row[0] for row in cells("settings"))
    for name, about in SETTINGS.items():
        if about.later or name in SHAPING_LATER:
            continue
        for variable in (f"KGC_SIDECAR_{name.upper()}", *about.synonyms):
            assert f"`{variable}`" in told


def variables() -> Iterator[tuple[str, str]]:
    """Every environment variable of the table with a value that it takes."""
    samples = {"true": "true", "false": "false", "empty": "", "info": "debug", "json": "console"}
    for names, default, _ in cells("settings"):
        for variable in names.replace("`", "").split(", "):
            yield variable, samples.get(default, default.split(" ")[0])


def test_every_variable_of_the_table_is_known_and_takes_its_default() -> None:
    for variable, value in variables():
        loaded = load(environ={variable: value})
        assert not value or variable in " ".join(loaded.origins.values()), variable


def test_a_later_feature_cannot_be_switched_on() -> None:
    for variable, value, feature in (("KGC_SIDECAR_KMS_PROVIDER", "vault", "encryption of case data"),):
        assert variable in README.read_text(encoding="utf-8")
        with pytest.raises(ConfigError, match=f"{variable}: {feature} is not available"):
            load(environ={variable: value})


def test_what_is_missing_is_told_by_the_daemon_under_the_name_of_the_readme() -> None:
    assert "`unavailable_features`" in README.read_text(encoding="utf-8")
    assert "unavailable_features" in pb.GetStatusResponse.DESCRIPTOR.fields_by_name
