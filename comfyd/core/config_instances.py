"""instances.json: one document -> instances and global settings, or every error with its place.

Owns: the meaning and the defaults of its fields. Must not: know which environments exist or what runs.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfyd.core.config_args import Arguments, check_together, read_arguments
from comfyd.core.config_report import Report, members, validated
from comfyd.core.memo import Entries
from comfyd.core.source import child, quoted
from comfyd.model.base import Frozen
from comfyd.model.desired import ENVIRONMENT_NAME, GlobalSettings, InstanceSpec, ProbeSpec, RestartSpec
from comfyd.model.sources import Variables

INSTANCE_FIELDS = frozenset(InstanceSpec.model_fields)
Flags = Mapping[str, frozenset[str]]
NESTED: Mapping[str, type[Frozen]] = {"probe": ProbeSpec, "restart": RestartSpec}
_GPU_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?)*")
_DIGIT_RANGE = re.compile(r"\d+-\d+")


@dataclass(frozen=True, slots=True)
class InstancesFile:
    instances: tuple[InstanceSpec, ...]
    settings: GlobalSettings
    environment: str | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What holds for every instance of the file. sources: (where it was written, what it says), in command order.

    flags: environment -> options that its --help lists.
    """

    environment: str
    sources: tuple[tuple[str, Arguments], ...] = ()
    flags: Flags = field(default_factory=dict)

    @property
    def args(self) -> tuple[str, ...]:
        return tuple(a for _, given in self.sources for a in given.args)


def read_instances(
    raw: Any, variables: Variables, report: Report, flags: Flags, memo: Entries | None = None
) -> InstancesFile | None:
    """The whole file; None if anything in it is wrong (then `report` has every error). flags: as in Shared."""
    top = members(raw, ("instances", "global_settings", "environment"), report, "", "the file")
    if top is None:
        return None
    settings, defaults = _settings(top.get("global_settings", {}), report)
    extra = extra_arguments(variables, report)
    sources = (("default_extra_args", defaults), ("EXTRA_ARGS", extra))
    if "environment" in top:
        check_environment(top["environment"], report, "/environment")
    else:
        own = Report("COMFYUI_ENVIRONMENT")
        check_environment(variables.environment, own, "")
        report.include(own)
    shared = Shared(top.get("environment", variables.environment), sources, flags)
    instances = _entries(top, shared, variables, report, memo or Entries())
    if report.failed or settings is None:
        return None
    return InstancesFile(instances, settings, top.get("environment"))


def _entries(
    top: dict[str, Any], shared: Shared, variables: Variables, report: Report, memo: Entries
) -> tuple[InstanceSpec, ...]:
    if not isinstance(top.get("instances"), list):
        if "instances" not in top:
            report.error("missing_key", "instances is missing", "/instances", 'write "instances": []')
        else:
            report.error("bad_value", f"instances must be a list, not {quoted(top['instances'])}", "/instances")
        return ()
    found: list[InstanceSpec] = []
    taken: dict[tuple[str, Any], str] = {}
    memo.begin((shared, variables.api_port))
    for index, raw in enumerate(top["instances"]):
        pointer = child("/instances", index)
        known = memo.known(raw)
        if known is not None:
            _check_unique({"id": known.id, "name": known.name, "port": known.port}, taken, report, pointer)
            found.append(known)
            continue
        issues = report.count
        spec = _entry(raw, shared, variables, report, pointer, taken)
        if spec is not None:
            found.append(spec)
        if spec is not None and report.count == issues:
            memo.keep(raw, spec)
    return tuple(found)


def _entry(
    raw: Any, shared: Shared, variables: Variables, report: Report, pointer: str, taken: dict[tuple[str, Any], str]
) -> InstanceSpec | None:
    fields = entry_fields(raw, report, pointer)
    if fields is None:
        return None
    for what, given in shared.sources:
        _lift(fields, given, what, report, pointer)
    _check_unique(fields, taken, report, pointer)
    if fields.get("port") == variables.api_port:
        text = f"port {variables.api_port} is the API's own port"
        report.error("api_port", text, child(pointer, "port"), "choose another one, or set COMFYD_PORT")
    fields.setdefault("environment", shared.environment)
    spec = validated(InstanceSpec, fields, report, pointer)
    known = shared.flags.get(fields["environment"], frozenset()) if spec is not None else frozenset()
    check_together((*shared.args, *fields.get("extra_args", ())), report, child(pointer, "extra_args"), known)
    return spec


def _lift(fields: dict[str, Any], given: Arguments, what: str, report: Report, pointer: str) -> None:
    """`--port` and `--listen` of `given` become fields; a field that says something else is an error."""
    for name, value in (("port", given.port), ("listen", given.listen)):
        if value is None:
            continue
        if fields.get(name) not in (None, value):
            text = f"{what} says --{name} {value}, but the field {name} is {quoted(fields[name])}"
            report.error("argument_conflict", text, child(pointer, name), f"remove --{name}; the field {name} decides")
            continue
        fields[name] = value
        text = f"{what}: --{name} {value} is taken as the field {name}"
        report.warning("argument_moved", text, child(pointer, name), f"write it as the field {name}")


def _check_unique(fields: dict[str, Any], taken: dict[tuple[str, Any], str], report: Report, pointer: str) -> None:
    for name in ("id", "name", "port"):
        value = fields.get(name)
        if not isinstance(value, str if name == "name" else int) or isinstance(value, bool):
            continue
        first = taken.setdefault((name, value), pointer)
        if first != pointer:
            line = report.document.at(child(first, name))[0] if report.document else 0
            text = f"{name} {quoted(value)} is already used by {first} in line {line}"
            report.error(f"duplicate_{name}", text, child(pointer, name), f"give this entry another {name}")


def _settings(raw: Any, report: Report) -> tuple[GlobalSettings | None, Arguments]:
    pointer = "/global_settings"
    fields = members(raw, GlobalSettings.model_fields, report, pointer, "global_settings")
    if fields is None:
        return None, Arguments()
    args = Arguments()
    if "default_extra_args" in fields:
        what, place = "default_extra_args", child(pointer, "default_extra_args")
        args = read_arguments(fields[what], report, place, what) or Arguments()
        fields[what] = list(args.args)
    for name in ("log_directory", "pid_directory"):
        written = fields.get(name)
        if isinstance(written, str) and (not written or ".." in written.split("/")):
            report.error("bad_value", f"{name} must be a path without .., not {quoted(written)}", child(pointer, name))
    return validated(GlobalSettings, fields, report, pointer), args


def extra_arguments(variables: Variables, report: Report) -> Arguments:
    """EXTRA_ARGS, checked. What is wrong is reported as an issue of the variable."""
    own = Report("EXTRA_ARGS", fatal=report.fatal)
    given = read_arguments(variables.extra_args, own, "", "EXTRA_ARGS")
    report.include(own)
    return given or Arguments()


def entry_fields(raw: Any, report: Report, pointer: str) -> dict[str, Any] | None:
    """The known fields of one entry in their final form; not yet checked as a whole. None if it is no object."""
    fields = members(raw, INSTANCE_FIELDS, report, pointer, "an instance")
    if fields is None:
        return None
    for name, model in NESTED.items():
        if name in fields:
            inner = members(fields[name], model.model_fields, report, child(pointer, name), name)
            fields[name] = {} if inner is None else inner
    if "extra_args" in fields:
        given = read_arguments(fields["extra_args"], report, child(pointer, "extra_args"), "extra_args")
        fields["extra_args"] = list(given.args) if given else []
        _lift(fields, given or Arguments(), "extra_args", report, pointer)
    for name, check in _CHECKS.items():
        if name in fields:
            check(fields[name], report, child(pointer, name))
    env = fields.get("env")
    if isinstance(env, dict) and fields.get("gpus") is not None and "CUDA_VISIBLE_DEVICES" in env:
        text = "env sets CUDA_VISIBLE_DEVICES beside gpus; env wins and comfyd does not know the real GPUs"
        report.warning("gpus_twice", text, child(pointer, "env"), "use gpus alone")
    return fields


def name_problem(name: str) -> str | None:
    """Why `name` cannot name an instance; None if it can."""
    if not 1 <= len(name) <= 64 or not name.isprintable() or not name.strip():
        return "must have 1 to 64 printable characters"
    if "/" in name:
        return "must not contain /"
    if name.isdigit() or name == "all" or _DIGIT_RANGE.fullmatch(name):
        return "must not look like an id, a port range or `all`"
    return None


def _check_name(value: Any, report: Report, pointer: str) -> None:
    problem = name_problem(value) if isinstance(value, str) else None
    if problem:
        report.error("bad_value", f"name {problem}: {quoted(value)}", pointer)


def check_environment(value: Any, report: Report, pointer: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(ENVIRONMENT_NAME, value):
        text = f"an environment name has small letters, digits and -, not {quoted(value)}"
        report.error("bad_value", text, pointer)


def _check_gpus(value: Any, report: Report, pointer: str) -> None:
    if value is None or value == "none":
        return
    if not isinstance(value, list) or not value:
        report.error("bad_value", f'gpus must be a list like [0, 1] or "none", not {quoted(value)}', pointer)
        return
    for index, one in enumerate(value):
        number = isinstance(one, int) and not isinstance(one, bool) and one >= 0
        if not number and not (isinstance(one, str) and _GPU_UUID.fullmatch(one)):
            text = f"a GPU is an index like 0 or a UUID like GPU-8932f937, not {quoted(one)}"
            report.error("bad_value", text, child(pointer, index))
        elif one in value[:index]:
            report.error("bad_value", f"GPU {one} is listed twice", child(pointer, index))


def check_env(value: Any, report: Report, pointer: str) -> None:
    """Extra variables of a process: names as a shell knows them; COMFYD_* belong to comfyd."""
    for name, text in value.items() if isinstance(value, dict) else ():
        place = child(pointer, name)
        if not _VARIABLE.fullmatch(name):
            report.error("bad_value", f"{quoted(name)} cannot name a variable", place, key=True)
        elif name.startswith("COMFYD_"):
            report.error("bad_value", f"{name}: names that begin with COMFYD_ are comfyd's own", place, key=True)
        elif not isinstance(text, str):
            report.error("bad_value", f"{name} must be a text, not {quoted(text)}", place, 'write it in "..."')
    if not isinstance(value, dict):
        report.error("bad_value", f"env must be an object, not {quoted(value)}", pointer)


def _check_listen(value: Any, report: Report, pointer: str) -> None:
    parts: Iterable[str] = value.split(",") if isinstance(value, str) else ()
    if value is not None and not (isinstance(value, str) and all(_is_address(p) for p in parts)):
        report.error("bad_value", f"listen must be an address like 127.0.0.1, not {quoted(value)}", pointer)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and bool(_HOSTNAME.fullmatch(text)) and not text.replace(".", "").isdigit()
    return True


_CHECKS: Mapping[str, Callable[[Any, Report, str], None]] = {
    "name": _check_name,
    "environment": check_environment,
    "gpus": _check_gpus,
    "env": check_env,
    "listen": _check_listen,
}
