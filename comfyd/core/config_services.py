"""config/services.json: sidecars, processes without environment or queue. A broken file keeps the previous sidecars.

Owns: its fields. Must not: build processes (resolve does).
"""

import re
from typing import Any

from comfyd.core.config_environments import BROKEN, read_command, source_report
from comfyd.core.config_instances import check_env
from comfyd.core.config_report import Report, members, validated
from comfyd.core.source import child, quoted
from comfyd.model.desired import ConfigIssue, ProbeSpec, SidecarSpec
from comfyd.model.sources import SourceFile, Variables

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_FORBIDDEN_PLACEHOLDER = re.compile(r"\{(id|env_dir)\}")


def read_services(
    source: SourceFile | None, variables: Variables, previous: tuple[SidecarSpec, ...]
) -> tuple[tuple[SidecarSpec, ...], tuple[ConfigIssue, ...]]:
    """All sidecars in file order. Errors have severity `blocked`: they hold nothing but this file's own change."""
    if source is None or source.problem == "missing":
        return previous, (_gone(len(previous)),) if previous else ()
    report, raw = source_report(source, "blocked")
    found = () if raw is BROKEN else _entries(raw, variables, report)
    return (previous if report.failed else found), report.sorted


def _gone(count: int) -> ConfigIssue:
    """Only a file that says so ends a service."""
    text = f"services.json is missing: the {count} services it declared go on"
    hint = 'to have none, write {"services": []}'
    return ConfigIssue(severity="warning", code="file_missing", message=text, file="services.json", hint=hint)


def _entries(raw: Any, variables: Variables, report: Report) -> tuple[SidecarSpec, ...]:
    top = members(raw, ("services",), report, "", "the file")
    entries = top.get("services", []) if top is not None else []
    if not isinstance(entries, list):
        report.error("bad_value", f"services must be a list, not {quoted(entries)}", "/services")
        return ()
    made = [_entry(entry, variables, report, child("/services", index)) for index, entry in enumerate(entries)]
    for name in ("name", "port"):
        seen: set[Any] = set()
        for index, one in enumerate(made):
            value = getattr(one, name, None)
            if value is not None and value in seen:
                text = f"{name} {quoted(value)} is used twice"
                report.error(f"duplicate_{name}", text, child(child("/services", index), name))
            seen.add(value)
    return tuple(one for one in made if one is not None)


def _entry(raw: Any, variables: Variables, report: Report, pointer: str) -> SidecarSpec | None:
    fields = members(raw, SidecarSpec.model_fields, report, pointer, "a service")
    if fields is None:
        return None
    if isinstance(fields.get("name"), str) and not _NAME.fullmatch(fields["name"]):
        text = f"a service name has letters, digits, dot, _ and -, not {quoted(fields['name'])}"
        report.error("bad_value", text, child(pointer, "name"))
    if "command" in fields:
        place = child(pointer, "command")
        fields["command"] = read_command(fields["command"], report, place) or []
        _check_placeholders(fields, report, place)
    if "env" in fields:
        check_env(fields["env"], report, child(pointer, "env"))
    if isinstance(fields.get("probe"), dict):
        place = child(pointer, "probe")
        fields["probe"] = members(fields["probe"], ProbeSpec.model_fields, report, place, "probe")
        if fields.get("port") is None and fields["probe"] and fields["probe"].get("type") != "none":
            report.error("bad_value", 'a probe needs a port (or "type": "none")', place)
    if fields.get("port") == variables.api_port:
        text = f"port {variables.api_port} is the API's own port"
        report.error("api_port", text, child(pointer, "port"), "choose another one, or set COMFYD_PORT")
    return validated(SidecarSpec, fields, report, pointer)


def _check_placeholders(fields: dict[str, Any], report: Report, pointer: str) -> None:
    text = " ".join(fields["command"])
    if _FORBIDDEN_PLACEHOLDER.search(text):
        report.error("bad_value", "a service has no {id} and no {env_dir}, only {port} and {root}", pointer)
    if "{port}" in text and fields.get("port") is None:
        report.error("bad_value", "the command uses {port}, but port is not given", pointer)
