"""Settings: sources and their order, every name, and every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from knhk_sidecar.config import (
    MASK,
    SETTINGS,
    ConfigError,
    SidecarConfig,
    Value,
    is_loopback,
    join_address,
    load,
    split_address,
)

NAMES = {
    "KGC_SIDECAR_WORKFLOW_ENABLED": ("false", "workflow_enabled", False),
    "KGC_SIDECAR_WORKFLOW_DB_PATH": ("/d", "workflow_db_path", "/d"),
    "WORKFLOW_STATE_PATH": ("/d", "workflow_db_path", "/d"),
    "KGC_SIDECAR_ADDRESS": ("50051", "address", "127.0.0.1:50051"),
    "KGC_SIDECAR_SPIFFE_SOCKET": ("unix:///a", "spiffe_socket", "unix:///a"),
    "SPIFFE_ENDPOINT_SOCKET": ("unix:///a", "spiffe_socket", "unix:///a"),
    "KGC_SIDECAR_SPIFFE_TRUST_DOMAIN": ("a.org", "spiffe_trust_domain", "a.org"),
    "WORKFLOW_TRUST_DOMAIN": ("spiffe://a.org", "spiffe_trust_domain", "a.org"),
    "KGC_SIDECAR_SPIFFE_ID": ("spiffe://a.org/s", "spiffe_id", "spiffe://a.org/s"),
    "KGC_SIDECAR_REQUEST_TIMEOUT_MS": ("7000", "request_timeout_ms", 7000),
    "KGC_SIDECAR_RETRY_MAX_ATTEMPTS": ("4", "retry_max_attempts", 4),
    "KGC_SIDECAR_BATCH_SIZE": ("100", "batch_size", 100),
    "KGC_SIDECAR_BATCH_TIMEOUT_MS": ("2.5", "batch_timeout_ms", 2.5),
    "KGC_SIDECAR_KMS_PROVIDER": ("none", "kms_provider", "none"),
    "KGC_SIDECAR_KMS_REGION": ("eu", "kms_region", "eu"),
    "KGC_SIDECAR_KMS_KEY_ID": ("k", "kms_key_id", "k"),
    "KGC_SIDECAR_KMS_VAULT_URL": ("https://v", "kms_vault_url", "https://v"),
    "KGC_SIDECAR_KMS_VAULT_MOUNT": ("m", "kms_vault_mount", "m"),
    "KGC_SIDECAR_KEY_ROTATION_INTERVAL_HOURS": ("12", "key_rotation_interval_hours", 12),
    "KGC_SIDECAR_REGION": ("eu", "region", "eu"),
    "WORKFLOW_REGION": ("eu", "region", "eu"),
    "KGC_SIDECAR_PRIMARY_REGION": ("eu", "primary_region", "eu"),
    "KGC_SIDECAR_RECEIPT_SYNC_ENDPOINTS": ("a:1, b:2", "receipt_sync_endpoints", ("a:1", "b:2")),
    "KGC_SIDECAR_QUORUM_THRESHOLD": ("2", "quorum_threshold", 2),
    "KGC_SIDECAR_SLO_R1_P99_MAX_NS": ("3", "slo_r1_p99_max_ns", 3),
    "KGC_SIDECAR_SLO_W1_P99_MAX_MS": ("2", "slo_w1_p99_max_ms", 2),
    "KGC_SIDECAR_SLO_C1_P99_MAX_MS": ("400", "slo_c1_p99_max_ms", 400),
    "KGC_SIDECAR_SLO_ADMISSION_STRATEGY": ("Degrade", "slo_admission_strategy", "degrade"),
    "KGC_SIDECAR_SLO_THRESHOLD": ("0.9", "slo_threshold", 0.9),
    "KGC_SIDECAR_PROMOTION_ENVIRONMENT": ("Production", "promotion_environment", "production"),
    "KGC_SIDECAR_PROMOTION_TRAFFIC_PERCENT": ("10", "promotion_traffic_percent", 10.0),
    "KGC_SIDECAR_AUTO_ROLLBACK_ENABLED": ("no", "auto_rollback_enabled", False),
    "WORKFLOW_API_HOST": ("127.0.0.2", "http_address", "127.0.0.2:8080"),
    "WORKFLOW_API_PORT": ("9000", "http_address", "127.0.0.1:9000"),
    "WORKFLOW_AUTH_ENABLED": ("false", "auth_enabled", False),
    "WORKFLOW_RATE_LIMIT_ENABLED": ("false", "rate_limit_enabled", False),
    "KGC_SIDECAR_RATE_LIMIT_PER_SECOND": ("12.5", "rate_limit_per_second", 12.5),
    "WORKFLOW_INSTANCE_ID": ("i", "instance_id", "i"),
}

LATER = {
    "KGC_SIDECAR_KMS_PROVIDER": "vault",
    "KGC_SIDECAR_CROSS_REGION_SYNC_ENABLED": "true",
    "WORKFLOW_MULTI_REGION": "true",
    "KGC_SIDECAR_SLO_ENABLED": "true",
    "KGC_SIDECAR_PROMOTION_ENABLED": "true",
    "WORKFLOW_FORTUNE5_ENABLED": "true",
    "WORKFLOW_OTEL_ENDPOINT": "http://collector:4317",
}


def problems(**sources: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**sources)  # type: ignore[arg-type]  # each test gives what load takes
    return str(caught.value).splitlines()


def test_the_defaults_are_a_daemon_on_loopback() -> None:
    config = SidecarConfig()
    assert config.workflow_enabled
    assert config.store_path == "./workflow_db"
    assert (config.address, config.http_address) == ("127.0.0.1:50051", "127.0.0.1:8080")
    assert (config.request_timeout_ms, config.retry_max_attempts) == (5000, 3)
    assert (config.slo_r1_p99_max_ns, config.slo_w1_p99_max_ms, config.slo_c1_p99_max_ms) == (2, 1, 500)
    assert config.plain_listener == ""


@pytest.mark.parametrize("variable", NAMES)
def test_every_documented_variable_sets_its_field(variable: str) -> None:
    text, name, value = NAMES[variable]
    loaded = load(environ={variable: text})
    assert getattr(loaded.config, name) == value
    assert loaded.origins[name] == f"env {variable}"


@pytest.mark.parametrize("variable", LATER)
def test_a_feature_that_is_not_there_cannot_be_switched_on(variable: str) -> None:
    (line,) = problems(environ={variable: LATER[variable]})
    assert line.startswith(f"{variable}: ")
    assert "not available in this version" in line


def test_tls_files_come_from_the_environment() -> None:
    names = {"ENABLED": "true", "CERT": "/c", "KEY": "/k", "CA": "/a"}
    config = SidecarConfig.from_env({f"KGC_SIDECAR_TLS_{name}": value for name, value in names.items()})
    assert (config.tls_enabled, config.tls_cert, config.tls_key, config.tls_ca) == (True, "/c", "/k", "/a")


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "knhk.toml"
    file.write_text('region = "file"\ninstance_id = "file"\n[kms]\nregion = "file"\n[slo]\nr1_p99_max_ns = 9\n')
    loaded = load(
        flags={"region": "flag", "log_level": None},
        environ={"WORKFLOW_REGION": "env", "WORKFLOW_INSTANCE_ID": "env", "KGC_SIDECAR_CONFIG_FILE": str(file)},
    )
    config = loaded.config
    assert (config.region, config.instance_id, config.kms_region, config.slo_r1_p99_max_ns) == (
        "flag",
        "env",
        "file",
        9,
    )
    origins = {line.name: line.origin for line in loaded.describe()}
    assert origins["region"] == "flag --region"
    assert origins["instance_id"] == "env WORKFLOW_INSTANCE_ID"
    assert origins["kms_region"] == f"file {file}"
    assert origins["kms_key_id"] == "default"


def test_a_file_alone_does_not_read_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKFLOW_REGION", "process")
    file = tmp_path / "knhk.toml"
    file.write_text("batch_size = 7\n")
    assert SidecarConfig.from_file(file).region == ""
    assert SidecarConfig.from_file(file).batch_size == 7
    assert SidecarConfig.from_env().region == "process"


def test_synonyms_with_one_value_agree_whatever_their_spelling() -> None:
    both = {"KGC_SIDECAR_SPIFFE_TRUST_DOMAIN": "a.org", "WORKFLOW_TRUST_DOMAIN": "spiffe://a.org"}
    assert load(environ=both).config.spiffe_trust_domain == "a.org"


def test_synonyms_with_two_values_are_a_problem_that_names_both() -> None:
    (line,) = problems(environ={"KGC_SIDECAR_WORKFLOW_DB_PATH": "/a", "WORKFLOW_STATE_PATH": "/b"})
    assert "KGC_SIDECAR_WORKFLOW_DB_PATH and WORKFLOW_STATE_PATH" in line
    (line,) = problems(environ={"KGC_SIDECAR_HTTP_ADDRESS": "127.0.0.1:1", "WORKFLOW_API_PORT": "2"})
    assert "KGC_SIDECAR_HTTP_ADDRESS and WORKFLOW_API_PORT" in line


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "knhk.toml"
    file.write_text('wrokflow_enabled = true\n[tls]\ncrt = "x"\n')
    lines = problems(
        file=str(file),
        environ={
            "KGC_SIDECAR_ADRESS": "1",
            "KGC_SIDECAR_BATCH_SIZE": "many",
            "KGC_SIDECAR_KEY_ROTATION_INTERVAL_HOURS": "25",
        },
        flags={"log_level": "loud", "max_in_flght": 3},
    )
    text = "\n".join(lines)
    assert len(lines) == 7
    assert "wrokflow_enabled: is not a setting (did you mean workflow_enabled?)" in text
    assert "tls_crt: is not a setting (did you mean tls_cert?)" in text
    assert "KGC_SIDECAR_ADRESS: is not a setting (did you mean KGC_SIDECAR_ADDRESS?)" in text
    assert "KGC_SIDECAR_BATCH_SIZE: must be a whole number, not 'many'" in text
    assert "KGC_SIDECAR_KEY_ROTATION_INTERVAL_HOURS: must be 1 to 24 h, not 25" in text
    assert "--log-level: must be one of debug, info, warning, error, not 'loud'" in text
    assert "--max-in-flght: is not a setting (did you mean max_in_flight?)" in text


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (line,) = problems(file=str(tmp_path / "absent.toml"), environ={})
    assert "absent.toml: cannot be read" in line
    broken = tmp_path / "broken.toml"
    broken.write_text("a = = 1")
    (line,) = problems(file=str(broken), environ={})
    assert "broken.toml: is not TOML" in line


def test_variables_that_kubernetes_adds_for_services_are_no_settings() -> None:
    added = {
        "KGC_SIDECAR_SERVICE_HOST": "10.0.0.1",
        "KGC_SIDECAR_SERVICE_PORT": "50051",
        "KGC_SIDECAR_SERVICE_PORT_GRPC": "50051",
        "KGC_SIDECAR_PORT": "tcp://10.0.0.1:50051",
        "KGC_SIDECAR_PORT_50051_TCP_ADDR": "10.0.0.1",
        "WORKFLOW_API_PORT": "tcp://10.0.0.2:8080",
    }
    assert load(environ=added).config == SidecarConfig()


@pytest.mark.parametrize("name", ["address", "http_address"])
def test_without_identity_the_daemon_listens_on_loopback_only(name: str) -> None:
    (line,) = problems(flags={name: "0.0.0.0:1"}, environ={})
    assert "must be a loopback address" in line
    files: dict[str, Value] = {"tls_enabled": True, "tls_cert": "c", "tls_key": "k", "tls_ca": "a"}
    assert getattr(load(flags={name: "0.0.0.0:1", **files}, environ={}).config, name) == "0.0.0.0:1"


def test_whoever_lets_everybody_in_does_so_on_loopback_only() -> None:
    files: dict[str, Value] = {"tls_enabled": True, "tls_cert": "c", "tls_key": "k", "tls_ca": "a"}
    for name in ("http_address", "health_address"):
        (line,) = problems(flags={name: "0.0.0.0:1", "auth_enabled": False, **files}, environ={})
        assert "auth_enabled is false" in line
        (line,) = problems(flags={name: "0.0.0.0:1", "dev": True}, environ={})
        assert "developer mode" in line
    (line,) = problems(flags={"plain_address": "0.0.0.0:1", "dev": True}, environ={})
    assert "it has no TLS" in line
    (line,) = problems(flags={"plain_address": "127.0.0.1:1"}, environ={})
    assert "developer mode only" in line


def test_half_of_tls_is_a_problem() -> None:
    (line,) = problems(flags={"tls_enabled": True, "tls_cert": "c"}, environ={})
    assert "needs tls_key, tls_ca too" in line
    (line,) = problems(flags={"tls_ca": "a"}, environ={})
    assert "no effect while tls_enabled is false" in line


def test_values_are_shown_without_their_secrets() -> None:
    loaded = load(flags={"kms_vault_url": "https://user:word@vault:8200"}, environ={})
    (line,) = (line for line in loaded.describe() if line.name == "kms_vault_url")
    assert line.value == f"https://{MASK}@vault:8200"


def test_every_setting_says_what_it_is_and_why() -> None:
    assert [name for name, about in SETTINGS.items() if not about.doc or not (about.reason or about.later)] == []


def test_data_dir_holds_everything_unless_the_store_has_its_own_place() -> None:
    assert SidecarConfig(data_dir="/d").store_path == "/d/workflow_db"
    assert SidecarConfig(data_dir="/d", workflow_db_path="/s").store_path == "/s"
    assert SidecarConfig(data_dir="/d", dev=True).dev_directory == "/d/dev"
    assert SidecarConfig(data_dir="d", dev=True).dev_directory == str(Path.cwd() / "d" / "dev")
    assert SidecarConfig(dev=True).plain_listener == "127.0.0.1:50052"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("50051", "127.0.0.1", 50051), (":0", "127.0.0.1", 0), ("localhost:1", "localhost", 1), ("[::1]:2", "::1", 2)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)
    assert split_address(join_address(host, port)) == (host, port)
    assert is_loopback(text)


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1", "127.0.0.1:65536", "a b:1", "127.0.0.1:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|not a host"):
        split_address(text)


@pytest.mark.parametrize("variable", ["KGC_SIDECAR_SPIFFE_ENABLED", "WORKFLOW_SPIFFE_ENABLED"])
def test_the_workload_api_comes_from_the_environment(variable: str) -> None:
    config = load(environ={variable: "true", "SPIFFE_ENDPOINT_SOCKET": "unix:///a.sock"}).config
    assert (config.spiffe_enabled, config.spiffe_socket) == (True, "unix:///a.sock")


def test_what_the_workload_api_needs() -> None:
    agent: dict[str, Value] = {"spiffe_enabled": True, "spiffe_socket": "unix:///a.sock"}
    (line,) = problems(flags={"spiffe_enabled": True}, environ={})
    assert "needs spiffe_socket" in line
    (line,) = problems(flags={**agent, "spiffe_socket": "/a.sock"}, environ={})
    assert "unix:///path" in line
    (line,) = problems(flags={**agent, "tls_cert": "c"}, environ={})
    assert "only a part of the files" in line
    (line,) = problems(flags={"spiffe_federates_with": "b.org"}, environ={})
    assert "no effect" in line
    config = load(flags={**agent, "address": "0.0.0.0:1", "spiffe_federates_with": "b.org, c.org"}, environ={}).config
    assert config.federated_domains == ("b.org", "c.org")


def test_tokens_need_a_private_connection() -> None:
    files: dict[str, Value] = {"tls_enabled": True, "tls_cert": "c", "tls_key": "k", "tls_ca": "a"}
    svids: dict[str, Value] = {"jwt_svid_audiences": "spiffe://a.org/s", "jwt_svid_bundle": "b"}
    (line,) = problems(flags={"token_address": "0.0.0.0:1", "issuers_file": "i"}, environ={})
    assert "needs TLS" in line
    (line,) = problems(flags={"token_address": "0.0.0.0:1", **files}, environ={})
    assert "no effect without tokens" in line
    for why, flags in (
        ("auth_enabled is false", {"auth_enabled": False, **files, **svids}),
        ("developer", {"dev": True}),
    ):
        (line,) = problems(flags={"token_address": "0.0.0.0:1", **flags}, environ={})
        assert "must be a loopback address" in line
        assert why in line
    config = load(flags={"token_address": "0.0.0.0:1", **files, **svids}, environ={}).config
    assert config.token_address == "0.0.0.0:1"
    (line,) = problems(flags={"http_address": "0.0.0.0:1", "issuers_file": "i"}, environ={})
    assert "must be a loopback address" in line


def test_what_jwt_svids_need() -> None:
    files: dict[str, Value] = {"tls_enabled": True, "tls_cert": "c", "tls_key": "k", "tls_ca": "a"}
    agent: dict[str, Value] = {"spiffe_enabled": True, "spiffe_socket": "unix:///a.sock"}
    (line,) = problems(flags={"jwt_svid_audiences": "x", **files}, environ={})
    assert "needs keys" in line
    (line,) = problems(flags={"jwt_svid_bundle": "b", **files}, environ={})
    assert "no effect without jwt_svid_audiences" in line
    (line,) = problems(flags={"jwt_svid_bundle": "b", "jwt_svid_audiences": "x", **agent}, environ={})
    assert "no effect where an agent is asked" in line
    (line,) = problems(flags={"jwt_svid_bundle": "b", "jwt_svid_audiences": "x"}, environ={})
    assert "no trust domain" in line
    assert load(flags={"jwt_svid_audiences": "x, y", **agent}, environ={}).config.jwt_svid_audiences == ("x", "y")


def test_a_settings_file_may_have_the_issuers(tmp_path: Path) -> None:
    file = tmp_path / "knhk.toml"
    file.write_text('region = "eu"\n[issuers.a]\nissuer = "https://a.example"\naudiences = ["knhk"]\n')
    assert load(file=str(file), environ={}).config.issuers_file == str(file)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://witness.example.org/log", True),
        ("http://127.0.0.1:8080/log", True),
        ("http://localhost/log", True),
        ("http://[::1]:80/log", True),
        ("http://witness.example.org/log", False),
        ("http://127.0.0.1.example.org/log", False),
        ("https://", False),
        ("https://[::1", False),
        ("ftp://witness.example.org", False),
    ],
)
def test_checkpoints_are_posted_where_nobody_on_the_way_reads_them(url: str, good: bool) -> None:
    given = {"KGC_SIDECAR_DEV": "true", "KGC_SIDECAR_AUDIT_CHECKPOINT_URL": url}
    if good:
        assert load(environ=given).config.audit_checkpoint_url == url
        return
    with pytest.raises(ConfigError, match="no https:// address"):
        load(environ=given)
