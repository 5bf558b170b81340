"""Settings: precedence, booleans, unknown names, loopback only, every variable of the contract."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from comfyd.errors import SettingsError
from comfyd.settings import load_settings, parse_bool, setting_variables
from comfyd.wiring import paths_from, variables_from

CONTRACT = {
    "COMFYUI_ENVIRONMENT": ("environment", "aua-us", "aua-us"),
    "COMFYUI_BASE_PORT": ("base_port", "4001", 4001),
    "DISABLE_AUTOLAUNCH": ("disable_autolaunch", "true", True),
    "COMFYUI_ENABLE_MULTI_INSTANCE": ("multi_instance", "yes", True),
    "COMFYUI_INSTANCES": ("legacy_instances", "3", 3),
    "EXTRA_ARGS": ("extra_args", "--lowvram --cpu", "--lowvram --cpu"),
    "SKIP_MODEL_DOWNLOAD": ("skip_model_download", "on", True),
    "DISABLE_SYNC": ("disable_sync", "1", True),
    "HF_ENDPOINT": ("hf_endpoint", "https://mirror", "https://mirror"),
    "COMFYD_ROOT": ("root", "/data", Path("/data")),
    "COMFYD_HOST": ("host", "::1", "::1"),
    "COMFYD_PORT": ("port", "9001", 9001),
    "COMFYD_DATABASE_URL": ("database_url", "postgresql://h/d", SecretStr("postgresql://h/d")),
    "COMFYD_LOG_LEVEL": ("log_level", "DEBUG", "DEBUG"),
    "COMFYD_LOG_FORMAT": ("log_format", "json", "json"),
    "COMFYD_DISPATCH": ("dispatch", "off", False),
    "COMFYD_STRICT": ("strict", "1", True),
    "COMFYD_KEEP_INSTANCES": ("keep_instances", "true", True),
    "COMFYD_FETCH_LEASE_S": ("fetch_lease_s", "60", 60.0),
    "COMFYD_SHUTDOWN_DRAIN_S": ("shutdown_drain_s", "0", 0.0),
    "COMFYD_INSTANCE_LISTEN": ("instance_listen", "0.0.0.0", "0.0.0.0"),
    "COMFYD_ALLOWED_HOSTS": ("allowed_hosts", "box.lan", "box.lan"),
}


@pytest.mark.parametrize("variable", CONTRACT)
def test_every_variable_of_the_contract_is_read(variable: str) -> None:
    field, text, value = CONTRACT[variable]
    assert setting_variables()[variable] == field
    assert getattr(load_settings({variable: text}), field) == value
    assert getattr(load_settings({}), field) != value


@pytest.mark.parametrize("variable", ["HF_TOKEN", "CIVITAI_TOKEN", "CIVITAI_API_TOKEN"])
def test_tokens_are_read_and_never_printed(variable: str) -> None:
    settings = load_settings({variable: "s3cret"})
    secret = settings.hf_token if variable == "HF_TOKEN" else settings.civitai_token
    assert secret is not None
    assert secret.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    "url", ["mysql://u:s3cret@h/d", "u:s3cret@h/d", "postgresql+asyncpg://u:s3cret@h", "//[s3cret"]
)
def test_an_address_of_another_kind_is_refused_and_its_password_is_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match=r"COMFYD_DATABASE_URL=.*postgresql://") as caught:
        load_settings({"COMFYD_DATABASE_URL": url})
    assert "s3cret" not in str(caught.value)
    good = load_settings({"COMFYD_DATABASE_URL": "postgres://u:s3cret@h/d"})
    assert "s3cret" not in repr(good)
    assert load_settings({"COMFYD_DATABASE_URL": ""}).database_url is None


def test_defaults_of_the_contract() -> None:
    settings = load_settings({})
    assert (settings.root, settings.host, settings.port) == (Path("/"), "127.0.0.1", 8001)
    assert (settings.environment, settings.base_port) == ("comm", 3001)
    assert settings.disable_autolaunch is None
    assert settings.legacy_instances is None


def test_the_command_line_wins_and_none_is_not_given() -> None:
    environ = {"COMFYD_PORT": "9001", "COMFYD_ROOT": "/env"}
    settings = load_settings(environ, port=9002, root=None)
    assert (settings.port, settings.root) == (9002, Path("/env"))


def test_only_the_given_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYD_PORT", "9009")
    monkeypatch.setenv("COMFYUI_ENVIRONMENT", "elsewhere")
    settings = load_settings({})
    assert (settings.port, settings.environment) == (8001, "comm")
    assert load_settings().port == 9009


def test_a_relative_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({"COMFYD_ROOT": "here"}).root == tmp_path / "here"


@pytest.mark.parametrize("text", ["1", "true", "YES", "On", " true "])
def test_true(text: str) -> None:
    assert parse_bool(text) is True
    assert load_settings({"COMFYD_STRICT": text}).strict is True


@pytest.mark.parametrize("text", ["0", "false", "NO", "Off", ""])
def test_false(text: str) -> None:
    assert parse_bool(text) is False
    assert load_settings({"COMFYD_DISPATCH": text}).dispatch is False


@pytest.mark.parametrize("text", ["2", "maybe", "truee", "null", "True False"])
def test_anything_else_is_an_error(text: str) -> None:
    with pytest.raises(SettingsError, match="DISABLE_SYNC="):
        load_settings({"DISABLE_SYNC": text})


def test_an_empty_tri_state_is_unset_as_an_empty_number_is() -> None:
    settings = load_settings({"DISABLE_AUTOLAUNCH": "", "COMFYUI_INSTANCES": "", "COMFYD_PORT": ""})
    assert settings.disable_autolaunch is None
    assert settings.legacy_instances is None
    assert settings.port == 8001


@pytest.mark.parametrize(
    ("environ", "messages"),
    [
        ({"COMFYD_PROT": "1"}, ["COMFYD_PROT: no such setting, did you mean COMFYD_"]),
        ({"COMFYD_LOG_LEVLE": "DEBUG"}, ["COMFYD_LOG_LEVLE: no such setting, did you mean COMFYD_LOG_LEVEL?"]),
        (
            {"COMFYD_PORT": "x", "COMFYD_STRICT": "x", "COMFYD_X_Y": ""},
            ["COMFYD_PORT=", "COMFYD_STRICT=", "COMFYD_X_Y:"],
        ),
        ({"COMFYD_PORT": "0"}, ["COMFYD_PORT="]),
        ({"COMFYD_PORT": "65536"}, ["COMFYD_PORT="]),
        ({"COMFYD_LOG_FORMAT": "xml"}, ["COMFYD_LOG_FORMAT="]),
        ({"COMFYUI_INSTANCES": "-1"}, ["COMFYUI_INSTANCES="]),
    ],
)
def test_every_bad_variable_is_named_at_once(environ: dict[str, str], messages: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    assert all(m in caught.value.message for m in messages), caught.value.message
    assert caught.value.code == "invalid_config"


def test_variables_of_others_and_of_the_client_are_let_be() -> None:
    load_settings({"COMFYD_URL": "http://x", "COMFYD_FAILPOINT": "x=kill", "COMFY_CLI": "1", "PATH": "/bin"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_an_address_others_can_reach_is_refused(host: str) -> None:
    if host == "":
        assert load_settings({"COMFYD_HOST": host}).host == "127.0.0.1"
        return
    with pytest.raises(SettingsError, match="only loopback"):
        load_settings({"COMFYD_HOST": host})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_is_accepted(host: str) -> None:
    assert load_settings({"COMFYD_HOST": host}).host == host


def test_paths_hang_off_the_root_and_can_be_set_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"COMFYD_ROOT": "/data", "COMFYD_WORKSPACE": "/fast/ws", "COMFYD_LOG_DIR": "logs"}
    paths = paths_from(load_settings(environ))
    assert paths.instances_file == Path("/data/instances.json")
    assert paths.state_dir == Path("/fast/ws/.comfyd")
    assert paths.log_dir == tmp_path / "logs"
    assert paths.environments_dir == Path("/data/config/environments")


def test_variables_carry_what_the_files_depend_on() -> None:
    environ: dict[str, Any] = {
        "COMFYUI_ENVIRONMENT": "aua-sp", "COMFYUI_BASE_PORT": "4001", "DISABLE_AUTOLAUNCH": "0", "EXTRA_ARGS": "--cpu",
        "COMFYUI_ENABLE_MULTI_INSTANCE": "1", "COMFYUI_INSTANCES": "2", "COMFYD_PORT": "9001", "COMFYD_STRICT": "1",
        "COMFYD_INSTANCE_LISTEN": "::1", "COMFYD_STARTUP_DEADLINE_S": "5", "COMFYD_STOP_GRACE_S": "6",
        "COMFYD_DRAIN_TIMEOUT_S": "7",
    }  # fmt: skip
    made = variables_from(load_settings(environ))
    assert (made.environment, made.base_port, made.disable_autolaunch, made.extra_args) == (
        "aua-sp",
        4001,
        False,
        "--cpu",
    )
    assert (made.multi_instance, made.instances, made.api_port, made.strict) == (True, 2, 9001, True)
    assert (made.instance_listen, made.startup_deadline_s, made.stop_grace_s, made.drain_timeout_s) == ("::1", 5, 6, 7)
