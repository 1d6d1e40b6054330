"""The operator's connectors: a file, read once at the start.

    [connectors]                          # or in YAML: connectors: {allow: [...], billing: {...}}
    allow = ["https://*.example.org"]     # beside those of connector_allow
    networks = ["10.1.0.0/16"]

    [connectors.billing]
    kind = "http"
    default = true
    base_url = "https://billing.example.org/api"
    auth = {bearer = {file = "/run/secrets/billing"}}

A table is a connector; its members but `kind` and `default` are the kind's settings. Kinds of other packages come by
the entry point group `knhk.connectors`: each names a factory (settings, surroundings) -> connector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Final, cast

from knhk_sidecar.config import CONNECTORS_TABLE, ConfigError, Problem, SidecarConfig
from knhk_workflow import Connector, ConnectorConfig, ConnectorFactory, ConnectorSetup, Surroundings

ENTRY_POINTS: Final = "knhk.connectors"
OWN: Final = ("http", "grpc")  # kinds that are built in
_LISTS: Final = ("allow", "networks")


def connectors_of(config: SidecarConfig, environ: Mapping[str, str]) -> ConnectorSetup:
    """What the settings say about connectors. Raises ConfigError with every problem of the file."""
    problems: list[Problem] = []
    table = _read(config.connectors_file, problems) if config.connectors_file else {}
    lists = {name: _texts(table.get(name, []), f"{config.connectors_file}: {name}", problems) for name in _LISTS}
    configured = [
        _one(name, value, config.connectors_file, problems) for name, value in table.items() if name not in _LISTS
    ]
    others = _others(problems)
    if problems:
        raise ConfigError(problems)
    return ConnectorSetup(
        configured=tuple(each for each in configured if each is not None),
        allow=(*config.connector_allow, *lists["allow"]),
        networks=(*config.connector_networks, *lists["networks"]),
        kinds={"grpc": _grpc, **others},
        environ=environ,
        secrets_directory=config.connector_secrets_dir,
    )


def _grpc(settings: bytes, surroundings: Surroundings) -> Connector:
    from knhk_sidecar.connectors.grpc import make  # noqa: PLC0415 - only a daemon with such a connector pays for it

    return make(settings, surroundings)


def _others(problems: list[Problem]) -> dict[str, ConnectorFactory]:
    """The kinds of installed packages. One that cannot be loaded, or that says it is another one, is a problem."""
    found: dict[str, ConnectorFactory] = {}
    for each in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.value):
        where = f"{ENTRY_POINTS}: {each.name} = {each.value}"
        if each.name in OWN or each.name in found:
            problems.append(Problem(where, "this kind of connector is there already", "remove one of the packages"))
            continue
        try:
            made: object = each.load()
        except Exception as error:  # noqa: BLE001  # whatever a package of others does when it is imported
            problems.append(Problem(where, f"cannot be loaded: {error!r}", "mend or remove the package"))
            continue
        if not callable(made):
            problems.append(Problem(where, "is no function (settings, surroundings) -> connector", "mend the package"))
            continue
        found[each.name] = cast("ConnectorFactory", made)
    return found


def _read(path: str, problems: list[Problem]) -> Mapping[str, object]:
    """The `connectors` table of a file."""
    try:
        with open(path, "rb") as stream:
            content = stream.read()
        if path.endswith((".yaml", ".yml")):
            import yaml  # noqa: PLC0415

            document: object = yaml.safe_load(content)
        else:
            import tomllib  # noqa: PLC0415

            document = tomllib.loads(content.decode())
    except OSError as error:
        problems.append(Problem("connectors_file", f"{path} cannot be read: {error.strerror}"))
        return {}
    except Exception as error:  # noqa: BLE001  # two parsers, each with its own errors; all of them mean the same
        problems.append(Problem("connectors_file", f"{path} cannot be understood: {error}"))
        return {}
    table = document.get(CONNECTORS_TABLE) if isinstance(document, dict) else None
    if not isinstance(table, dict):
        problems.append(Problem("connectors_file", f"{path} has no table `{CONNECTORS_TABLE}`"))
        return {}
    return table


def _texts(value: object, where: str, problems: list[Problem]) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        problems.append(Problem(where, "must be a list of texts"))
        return ()
    return tuple(value)


def _one(name: str, value: object, path: str, problems: list[Problem]) -> ConnectorConfig | None:
    if not isinstance(value, dict):
        problems.append(Problem(f"{path}: {name}", "is not a connector: a table with kind = ..."))
        return None
    kind, default = value.get("kind", ""), value.get("default", False)
    if not isinstance(kind, str) or not kind or not isinstance(default, bool):
        problems.append(Problem(f"{path}: {name}", "needs kind, such as http or grpc; default is true or false"))
        return None
    settings = {key: member for key, member in value.items() if key not in ("kind", "default")}
    return ConnectorConfig(name, kind, json.dumps(settings, default=str).encode(), default)
