"""All settings of the daemon: `COMFYD_*` and the older variables that existing users already set.

Owns: names, types and defaults (each is listed in docs/configuration.md, tested). Must not: read files of the root.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from comfyd.errors import SettingsError

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}
LOOPBACK = ("127.0.0.1", "::1", "localhost")
READ_ELSEWHERE = frozenset({"COMFYD_FAILPOINT", "COMFYD_URL", "COMFYD_TOKEN"})
"""By failpoint.py and by the client; the daemon accepts and ignores them."""


def parse_bool(value: Any) -> Any:
    """1/true/yes/on and 0/false/no/off/empty in any case; anything else is an error."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("must be one of 1, true, yes, on, 0, false, no, off or empty")


Switch = Annotated[bool, BeforeValidator(parse_bool)]


def _postgres_url(value: SecretStr) -> SecretStr:
    """The errors never show it: it may have a password."""
    try:
        scheme = urlsplit(value.get_secret_value()).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("postgresql", "postgres"):
        raise ValueError("must be an address as postgresql://user:password@host:5432/database")
    return value


def _plain(name: str) -> Any:
    return AliasChoices(name)


class Settings(BaseSettings):
    """Everything the environment may say. Durations end in `_s` and are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="COMFYD_", extra="ignore", frozen=True, populate_by_name=True, env_ignore_empty=False
    )

    root: Path = Path("/")
    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=1, le=65535)
    database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "json", "console"] = "auto"
    dispatch: Switch = True
    keep_instances: Switch = False
    strict: Switch = False

    instances_file: Path | None = None
    services_file: Path | None = None
    environments_dir: Path | None = None
    build_dir: Path | None = None
    baked_tree: Path | None = None
    workspace: Path | None = None
    models_dir: Path | None = None
    data_dir: Path | None = None
    log_dir: Path | None = None
    state_dir: Path | None = None

    instance_listen: str = "127.0.0.1"
    startup_deadline_s: float = Field(default=600, gt=0)
    stop_grace_s: float = Field(default=15, ge=0)
    drain_timeout_s: float = Field(default=600, ge=0)
    shutdown_drain_s: float = Field(default=5, ge=0)
    debounce_s: float = Field(default=0.1, ge=0)
    poll_s: float = Field(default=10, gt=0)
    force_polling: Switch = False

    install_stall_s: float = Field(default=600, gt=0)
    install_timeout_s: float = Field(default=7200, gt=0)
    allow_private_urls: Switch = False

    lease_s: float = Field(default=60, gt=0)
    fetch_lease_s: float = Field(default=3600, gt=0)
    retention_s: float = Field(default=604_800, ge=0)
    max_queued: int = Field(default=200_000, ge=0)
    max_body_mb: float = Field(default=10, gt=0)
    event_log_rows: int = Field(default=100_000, ge=100)
    allowed_hosts: str = ""

    environment: str = Field(default="comm", validation_alias=_plain("COMFYUI_ENVIRONMENT"))
    base_port: int = Field(default=3001, ge=1, le=65535, validation_alias=_plain("COMFYUI_BASE_PORT"))
    disable_autolaunch: Switch | None = Field(default=None, validation_alias=_plain("DISABLE_AUTOLAUNCH"))
    multi_instance: Switch = Field(default=False, validation_alias=_plain("COMFYUI_ENABLE_MULTI_INSTANCE"))
    legacy_instances: int | None = Field(default=None, ge=0, le=1000, validation_alias=_plain("COMFYUI_INSTANCES"))
    extra_args: str = Field(default="", validation_alias=_plain("EXTRA_ARGS"))
    skip_model_download: Switch = Field(default=False, validation_alias=_plain("SKIP_MODEL_DOWNLOAD"))
    disable_sync: Switch = Field(default=False, validation_alias=_plain("DISABLE_SYNC"))
    workflow: str | None = Field(default=None, validation_alias=_plain("WORKFLOW"))
    hf_token: SecretStr | None = Field(default=None, validation_alias=_plain("HF_TOKEN"))
    hf_endpoint: str = Field(default="https://huggingface.co", validation_alias=_plain("HF_ENDPOINT"))
    civitai_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("CIVITAI_TOKEN", "CIVITAI_API_TOKEN")
    )


def setting_variables() -> dict[str, str]:
    """Variable name -> field name, for docs, `did you mean` and tests."""
    names: dict[str, str] = {}
    for name, info in Settings.model_fields.items():
        alias = info.validation_alias
        for choice in alias.choices if isinstance(alias, AliasChoices) else [f"COMFYD_{name.upper()}"]:
            names[str(choice)] = name
    return names


def load_settings(environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """Settings from the environment; `given` (command line) wins.

    Raises SettingsError that names every bad variable, unknown COMFYD_* ones with a suggestion.
    """
    environ = os.environ if environ is None else environ
    known = setting_variables()
    problems = [
        _unknown(n, known)
        for n in environ
        if n.startswith("COMFYD_") and n not in known | dict.fromkeys(READ_ELSEWHERE)
    ]
    values: dict[str, Any] = {
        known[n]: v for n, v in environ.items() if n in known and not (v == "" and _empty_means_unset(known[n]))
    }
    values.update({k: v for k, v in given.items() if v is not None})
    try:
        settings = _Given(**values)
    except ValidationError as error:
        problems += [_bad(e, known) for e in error.errors()]
    if not problems and settings.host not in LOOPBACK:
        problems.append(
            f"COMFYD_HOST={settings.host}: only loopback (127.0.0.1, ::1) is accepted: this version has no tokens yet"
        )
    if problems:
        raise SettingsError("bad settings:\n  " + "\n  ".join(problems))
    return settings.model_copy(update={"root": settings.root.absolute()})


class _Given(Settings):
    """Settings built only from what load_settings hands in."""

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, **_: Any) -> Any:  # type: ignore[override]
        return (init_settings,)


def _empty_means_unset(field: str) -> bool:
    annotation = str(Settings.model_fields[field].annotation)
    return "bool" not in annotation or field == "disable_autolaunch"


def _unknown(name: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, [k for k in known if k.startswith("COMFYD_")], n=1)
    return f"{name}: no such setting" + (f", did you mean {close[0]}?" if close else "")


def _bad(error: Any, known: Mapping[str, str]) -> str:
    field = str(error["loc"][0]) if error["loc"] else "?"
    name = next((n for n, f in known.items() if f == field), field)
    shown = "..." if field == "database_url" else repr(error.get("input"))
    return f"{name}={shown}: {error['msg'].removeprefix('Value error, ')}"
