"""Bytes of all files + variables -> one accepted revision, or every error at once with file, path and line.

Owns: which file decides what when something is broken or missing, the stock file, the legacy fleet, the last good
state's format. Must not: read files or the environment, or look at what runs.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from comfyd.core.config_environments import BROKEN, is_service, read_environments, source_report
from comfyd.core.config_instances import Flags, InstancesFile, entry_fields, read_instances
from comfyd.core.config_report import Report, did_you_mean, validated
from comfyd.core.config_services import read_services
from comfyd.core.memo import Entries
from comfyd.core.source import child, quoted
from comfyd.model.base import Frozen
from comfyd.model.desired import ConfigIssue, DesiredState, EnvironmentSpec, InstanceSpec, SidecarSpec
from comfyd.model.sources import ConfigFiles, EnvironmentFolder, ParseResult, SourceFile, Variables

STOCK_SHA256 = "aa8633f0b294805a0659d058133c7cc10eb17deb66f9116da4abb580f1a0e7df"
"""Of config/instances.stock.json, the instances.json that images ship."""
LEGACY = "COMFYUI_INSTANCES"


def parse(
    files: ConfigFiles,
    variables: Variables,
    previous: DesiredState | None,
    flags: Flags | None = None,
    memo: Entries | None = None,
) -> ParseResult:
    """One revision of all files. flags: environment -> options that its --help lists, where more warnings are wanted.
    memo: handed to every call by the one who calls often.

    instances.json is taken whole or not at all (`refused`); a broken environment or services file falls back to its
    part of `previous` by itself. Missing instances.json: state `missing`, unless COMFYUI_INSTANCES gives the fleet.
    """
    environments, services, issues = _surroundings(files, variables, previous)
    source = files.instances
    stock = source.data is not None and hashlib.sha256(source.data).hexdigest() == STOCK_SHA256
    if variables.instances is not None and (stock or source.problem == "missing"):
        report, raw = Report(LEGACY), legacy_fleet(variables)
        stock = False
    else:
        report, raw = source_report(source, "error", empty='write at least {"instances": []}')
    _check_mount(source, report)
    file = None if raw is BROKEN else read_instances(raw, variables, report, flags or {}, memo)
    if file is not None:
        _check_references(file, environments, variables, report)
    issues = (*report.sorted, *issues)
    if file is None or report.failed:
        return ParseResult(None, issues, "missing" if source.problem == "missing" and raw is BROKEN else "refused")
    desired = DesiredState(
        instances=file.instances,
        environments=environments,
        services=services,
        settings=file.settings,
        default_environment=file.environment,
        stock=stock,
    )
    return ParseResult(desired, issues, "ok")


def fallback_state(files: ConfigFiles, variables: Variables) -> DesiredState:
    """What holds when no revision was ever accepted: no instances, but the environments and services there are."""
    environments, services, _ = _surroundings(files, variables, None)
    return DesiredState(environments=environments, services=services)


def _surroundings(
    files: ConfigFiles, variables: Variables, previous: DesiredState | None
) -> tuple[tuple[EnvironmentSpec, ...], tuple[SidecarSpec, ...], tuple[ConfigIssue, ...]]:
    known = {e.name: e for e in previous.environments} if previous else {}
    environments, first = read_environments(files.environments, known, variables.strict)
    if files.lost is not None and known:
        environments, first = tuple(known[name] for name in sorted(known)), _lost(files.lost, len(known))
    services, second = read_services(files.services, variables, previous.services if previous else ())
    return environments, services, (*first, *_unbuildable(environments, files.environments), *second)


def _lost(detail: str, count: int) -> tuple[ConfigIssue, ...]:
    """A folder that is gone or unreadable as a whole is no wish to have no environments."""
    folder, _, why = detail.rpartition(": ")
    text = f"the folder of all environments cannot be listed ({why}): the {count} known ones stay as they were"
    hint = "bring the folder back; to have no environments, leave an empty one"
    return (ConfigIssue(severity="warning", code="environments_lost", message=text, file=folder, hint=hint),)


def _check_mount(source: SourceFile, report: Report) -> None:
    """A file that is mounted by itself keeps its first inode: what replaces it outside is never seen in here."""
    if source.replaced:
        text = "this mounted file was replaced on the outside, and the mount shows the old one for ever"
        report.warning("mounted_file", text, hint="restart the container; to be spared that, mount the folder")
    elif source.mounted:
        text = "mounted file: edits in place are seen, one that replaces the file (most editors, mv) cannot be"
        report.warning("mounted_file", text, hint="mount its folder instead, or edit in place (cat new > file)")


def _unbuildable(specs: Iterable[EnvironmentSpec], folders: Iterable[EnvironmentFolder]) -> Iterable[ConfigIssue]:
    places = {f.name: f.config.path for f in folders}
    for spec in specs:
        report = Report(places.get(spec.name, ""), fatal="blocked")
        if spec.issue is None and not spec.has_install and not is_service(spec):
            text = f"environment {spec.name} has no build script: build/{spec.name}/install.sh is missing"
            report.blocked("no_build_script", text, hint=f"add build/{spec.name}/install.sh, or remove the folder")
        if spec.issue is None and is_service(spec) and not (spec.command or spec.startup_script):
            text = f"environment {spec.name} is a service ({spec.service_type}) without command or startup_script"
            report.blocked("no_command", text, hint="add command")
        yield from report.issues


def legacy_fleet(variables: Variables) -> dict[str, Any]:
    """COMFYUI_INSTANCES=N as the instances.json it stands for."""
    numbers = range(variables.instances or 0)
    return {
        "instances": [
            {"id": n, "port": variables.base_port + n, "name": f"instance-{n}", "enabled": True} for n in numbers
        ]
    }


def _check_references(
    file: InstancesFile, environments: tuple[EnvironmentSpec, ...], variables: Variables, report: Report
) -> None:
    names = [e.name for e in environments]
    for index, spec in enumerate(file.instances):
        if spec.environment not in names:
            pointer = child(child("/instances", index), "environment")
            text = f"instance {quoted(spec.name)} wants environment {spec.environment}, which has no config folder"
            hint = did_you_mean(spec.environment, names) if names else "no environment is declared yet"
            report.blocked("environment_unknown", text, pointer, hint)
    if variables.multi_instance and not any(i.enabled for i in file.instances):
        text = "COMFYUI_ENABLE_MULTI_INSTANCE is set, but no instance is enabled"
        report.warning("nothing_enabled", text, "/instances", f'set "enabled": true in {report.file}')


def check_fields(raw: Any, file: str = "request") -> tuple[dict[str, Any], tuple[ConfigIssue, ...]]:
    """The given fields of one instances.json entry as an override keeps them (plain JSON), for request bodies.

    Unknown keys are dropped with a warning. The fields are to be used only if no issue is an error.
    """
    report = Report(file)
    body = raw if isinstance(raw, Mapping) else {}
    known = {name: value for name, value in body.items() if name in InstanceSpec.model_fields}
    for name in body:
        if name not in known and not name.startswith(("_", "$")):
            hint = did_you_mean(name, InstanceSpec.model_fields)
            report.warning("unknown_key", f"{quoted(name)} is ignored", child("", name), hint)
    if body is not raw:
        report.error("bad_value", f"an instance must be an object, not {quoted(raw)}")
    fields = entry_fields(known, report, "") or {}
    validated(InstanceSpec, {"id": 0, "port": 1, "name": "any"} | fields, report, "")
    return fields, report.sorted


def overlay(base: InstanceSpec | None, given: Mapping[str, Any], report: Report) -> InstanceSpec | None:
    """`base` (None: nothing) with the fields of an override over it. None and errors in `report` if it is invalid."""
    fields = entry_fields(dict(given), report, "") or {}
    under = base.model_dump(mode="json", exclude_unset=True) if base else {}
    return validated(InstanceSpec, under | fields, report, "")


class _Saved(Frozen):
    version: Literal[1]
    state: DesiredState


def state_to_json(state: DesiredState) -> bytes:
    """The accepted state for the next boot. Only given fields are kept, so that defaults stay defaults."""
    text = state.model_dump_json(exclude_unset=True)
    return f'{{"version":1,"state":{text}}}\n'.encode()


def state_from_json(data: bytes) -> DesiredState | None:
    """What state_to_json wrote; None if it is torn, of another version or not ours."""
    try:
        return _Saved.model_validate_json(data).state
    except ValidationError:
        return None
