"""config/environments/<name>/config.json: each folder -> EnvironmentSpec. One broken file blocks only its environment.

Owns: the fields of config.json, what an environment falls back to, clashes between environments.
Must not: know instances (config.py joins them).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from comfyd.core.config_args import split
from comfyd.core.config_downloads import check_models, check_nodes, read_list, read_model, read_node
from comfyd.core.config_report import Report, Severity, members, validated
from comfyd.core.source import child, parse_source, quoted
from comfyd.model.base import Condition
from comfyd.model.desired import WORKFLOW_NAME, ConfigIssue, EnvironmentSpec, ProbeSpec
from comfyd.model.sources import EnvironmentFolder, SourceFile

_DERIVED = {"build_hash", "has_install", "fix_hash", "stored_workflows", "issue"}
FIELDS = frozenset(EnvironmentSpec.model_fields) - _DERIVED
PLACEHOLDERS = ("port", "id", "env_dir", "root")
COMFYUI_SERVICES = (None, "comfyui")
BROKEN = object()
"""Value of a file that could not be read or parsed; its issues say why."""
Previous = Mapping[str, EnvironmentSpec]


def read_environments(
    folders: Iterable[EnvironmentFolder], previous: Previous, strict: bool
) -> tuple[tuple[EnvironmentSpec, ...], tuple[ConfigIssue, ...]]:
    """All environments in name order and what is wrong with them (severity `blocked`).

    A broken one keeps its `previous` good version whole, else it gets an `issue` that holds its instances.
    """
    chosen: dict[str, EnvironmentSpec] = {}
    reports: dict[str, Report] = {}
    for folder in sorted(folders, key=lambda f: f.name):
        if folder.config.problem == "bad_name":
            reports[folder.name] = _bad_name(folder)
            continue
        spec, report = _read(folder, strict)
        reports[folder.name] = report
        chosen[folder.name] = spec or _fallback(folder.name, report, previous)
    _settle_clashes(chosen, reports, previous)
    issues = tuple(issue for name in sorted(reports) for issue in reports[name].sorted)
    return tuple(chosen[name] for name in sorted(chosen)), issues


def _bad_name(folder: EnvironmentFolder) -> Report:
    report = Report(folder.config.path, fatal="blocked")
    text = f"the folder {quoted(folder.name)} is ignored: an environment name has small letters, digits and -"
    report.warning("bad_environment_name", text, hint="rename the folder")
    return report


def source_report(source: SourceFile, fatal: Severity, empty: str = "") -> tuple[Report, Any]:
    """The value of a file with its flaws reported. A file without bytes is one issue and has the value BROKEN.

    empty: what to write into an empty file where `{}` would not do.
    """
    if source.data is None:
        report = Report(source.path, fatal=fatal)
        hint = _SOURCE_HINTS.get(source.problem or "", "correct it; the edit applies at once")
        report.error(f"file_{source.problem}", source.detail or f"{source.path}: {source.problem}", hint=hint)
        return report, BROKEN
    document = parse_source(source.data)
    if empty:
        flaws = tuple(replace(f, hint=empty) if f.code == "empty" else f for f in document.flaws)
        document = replace(document, flaws=flaws)
    return Report(source.path, document, fatal=fatal), BROKEN if document.broken else document.value


_SOURCE_HINTS = {
    "missing": "create the file",
    "unreadable": "let the user of comfyd read it (chmod, chown)",
    "not_a_file": "put a regular file there",
    "too_large": "make it smaller",
}


def _read(folder: EnvironmentFolder, strict: bool) -> tuple[EnvironmentSpec | None, Report]:
    report, raw = source_report(folder.config, "blocked")
    if raw is BROKEN:
        return None, report
    fields = members(raw, FIELDS, report, "", "the file")
    if fields is None:
        return None, report
    nodes = read_list(fields.pop("nodes", []), read_node, report, "/nodes")
    models = read_list(fields.pop("models", []), read_model, report, "/models")
    check_nodes(nodes, strict, report)
    check_models(models, strict, report)
    _check_fields(fields, folder, report)
    derived = {
        "build_hash": folder.build_hash,
        "has_install": folder.has_install,
        "fix_hash": folder.fix_hash,
        "stored_workflows": sorted(folder.workflows),
    }
    spec = validated(EnvironmentSpec, fields | derived | {"name": folder.name}, report, "")
    lists = {"nodes": tuple(nodes.values()), "models": tuple(models.values())}
    return (spec.model_copy(update=lists) if spec else None), report


def _check_fields(fields: dict[str, Any], folder: EnvironmentFolder, report: Report) -> None:
    if isinstance(fields.get("name"), str) and fields["name"] != folder.name:
        text = f"name says {quoted(fields['name'])}, but the folder name {folder.name} counts"
        report.warning("name_differs", text, "/name", "write the folder's name")
    if "name" in fields and not isinstance(fields["name"], str):
        report.error("bad_value", f"name must be a text, not {quoted(fields['name'])}", "/name")
    if "command" in fields and fields["command"] is not None:
        fields["command"] = read_command(fields["command"], report, "/command")
    if isinstance(fields.get("probe"), dict):
        fields["probe"] = members(fields["probe"], ProbeSpec.model_fields, report, "/probe", "probe")
    script = fields.get("startup_script")
    if isinstance(script, str) and (not script.strip() or ".." in script.split("/")):
        report.error("bad_value", f"startup_script must be a path without .., not {quoted(script)}", "/startup_script")
    _check_workflows(fields.get("workflows"), report)
    _check_limits(fields, report)


def read_command(raw: Any, report: Report, pointer: str) -> list[str] | None:
    """A list, or a string split once; it may not be empty."""
    words = split(raw, report, pointer, "command")
    if words is not None and (not words or not words[0]):
        report.error("bad_value", "command is empty", pointer)
    return list(words) if words else None


def _check_workflows(raw: Any, report: Report) -> None:
    for index, name in enumerate(raw if isinstance(raw, list) else ()):
        pointer = child("/workflows", index)
        if isinstance(name, str) and not re.fullmatch(WORKFLOW_NAME, name):
            text = f"a workflow name has letters, digits, dot, _ and -, at most 128, not {quoted(name)}"
            report.error("bad_value", text, pointer)
        elif name in raw[:index]:
            report.error("duplicate_workflow", f"workflow {quoted(name)} is listed twice", pointer)


def _check_limits(fields: dict[str, Any], report: Report) -> None:
    limits, workflows = fields.get("workflow_limits"), fields.get("workflows")
    for name in limits if isinstance(limits, dict) else ():
        if name not in (workflows if isinstance(workflows, list) else ()):
            text = f"workflow_limits names {quoted(name)}, which is none of the environment's workflows"
            report.warning("unknown_workflow", text, child("/workflow_limits", name), "correct the name or list it")


def _fallback(name: str, report: Report, previous: Previous) -> EnvironmentSpec:
    last = previous.get(name)
    if last is not None and last.issue is None:
        return last
    first = next((i for i in report.sorted if i.severity != "warning"), None)
    message = f"{first.file}:{first.line}: {first.message}" if first else "its config.json is broken"
    hint = f"correct {report.file}; the edit applies at once"
    issue = Condition("held", "environment_invalid", f"environment {name} has a broken config: {message}", hint)
    return EnvironmentSpec(name=name, issue=issue)


def _settle_clashes(chosen: dict[str, EnvironmentSpec], reports: Mapping[str, Report], previous: Previous) -> None:
    """A workflow belongs to one environment: all that claim it fall back, until nothing clashes."""
    fallen: set[str] = set()
    while clashes := _clashes(chosen.values()):
        for workflow, names in clashes.items():
            files = " and ".join(reports[n].file for n in names)
            for name in names:
                text = f"workflow {workflow} is listed in two environments: {files}"
                pointer = child("/workflows", chosen[name].workflows.index(workflow))
                reports[name].error("workflow_clash", text, pointer, "keep it in one of them")
        for name in {n for names in clashes.values() for n in names}:
            lasting: Previous = {} if name in fallen else previous
            chosen[name] = _fallback(name, reports[name], lasting)
            fallen.add(name)


def _clashes(specs: Iterable[EnvironmentSpec]) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for spec in specs:
        for workflow in spec.workflows:
            owners.setdefault(workflow, []).append(spec.name)
    return {workflow: names for workflow, names in sorted(owners.items()) if len(names) > 1}


def is_service(spec: EnvironmentSpec) -> bool:
    """Whether its instances are started by a command of its own instead of ComfyUI's main.py."""
    return bool(spec.command or spec.startup_script) or spec.service_type not in COMFYUI_SERVICES
