"""One entry of a start call → the overrides that ask for it.

Owns: which given fields differ from the file, and who holds a port or name already. Must not: write or wait.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from comfyd.api.context import ApiContext
from comfyd.api.wishes import Wished, start_wish, write
from comfyd.core.config import check_fields
from comfyd.errors import ComfydError
from comfyd.live import Live
from comfyd.logs import get_logger
from comfyd.model.desired import ConfigIssue, InstanceSpec, Override
from comfyd.model.process import DesiredProcess

log = get_logger(__name__)
NOT_OVERRIDDEN = frozenset({"id", "enabled"})
MAX_WARNINGS = 20


class Given(Protocol):
    """A pydantic model of an entry."""

    def model_dump(self, *, exclude_none: bool) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A start that may be written. clears: an older override of its fields says nothing any more."""

    id: int
    name: str
    port: int
    wished: Wished
    clears: bool
    warnings: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.wished.key

    async def write(self, context: ApiContext) -> None:
        await write(context, self.wished.overrides, [("spec", self.key)] if self.clears else ())


def read_entry(context: ApiContext, given: Given, environment: str | None, by: str, pointer: str = "") -> Entry:
    """The entry with its wishes. `environment`: for one that names none. Raises validation_failed."""
    raw = given.model_dump(exclude_none=True)
    if environment is not None:
        raw.setdefault("environment", environment)
    fields, issues = check_fields(raw)
    declared = _declared(context.live, fields.get("id"))
    if declared is None:
        fields.setdefault("environment", _default_environment(context))
    _refuse_errors(issues, pointer)
    spec = InstanceSpec.model_validate(fields)
    changed = _changed(spec, fields, declared)
    spec_override = Override(kind="spec", key=spec.key, fields=changed, created_at=context.clock().wall, by=by)
    warnings = [issue.message for issue in issues][:MAX_WARNINGS]
    if warnings:
        log.warning("start request has oddities", instance=spec.key, warnings=warnings)
    return Entry(
        id=spec.id, name=spec.name, port=spec.port, clears=not changed, warnings=tuple(warnings),
        wished=start_wish(context, spec.key, by, *((spec_override,) if changed else ())),
    )  # fmt: skip


def _declared(live: Live, instance_id: Any) -> InstanceSpec | None:
    return next((one for one in live.config.get().desired.instances if one.id == instance_id), None)


def _changed(spec: InstanceSpec, fields: Iterable[str], declared: InstanceSpec | None) -> dict[str, Any]:
    """The given fields that differ from the file; all given ones where no file declares the id."""
    wanted = spec.model_dump(mode="json", include=set(fields) - {"enabled"})
    if declared is None:
        return wanted
    stands = declared.model_dump(mode="json")
    return {name: value for name, value in wanted.items() if name not in NOT_OVERRIDDEN and stands[name] != value}


def _default_environment(context: ApiContext) -> str:
    return context.live.config.get().desired.default_environment or context.settings.environment


def _refuse_errors(issues: Iterable[ConfigIssue], pointer: str) -> None:
    errors = [
        {"path": pointer + one.path, "message": one.message, "hint": one.hint}
        for one in issues
        if one.severity == "error"
    ]
    if errors:
        message = f"{errors[0]['path'] or 'the request'}: {errors[0]['message']}"
        raise ComfydError(message, code="validation_failed", details={"errors": errors})


def refuse_rivals(context: ApiContext, entries: Sequence[Entry]) -> dict[str, str]:
    """key → why it may not start: its port or name belongs to another instance that runs or should run."""
    refused: dict[str, str] = {}
    accepted: list[Entry] = []
    for entry in entries:
        reason = _rival(context, entry, {one.key for one in entries}) or _twin(entry, accepted)
        if reason:
            refused[entry.key] = reason
        else:
            accepted.append(entry)
    return refused


def _rival(context: ApiContext, entry: Entry, asked: set[str]) -> str | None:
    if entry.port == context.settings.port:
        return f"port {entry.port} is the API's own port"
    for other in context.live.resolved.get().processes:
        if other.key == entry.key or other.key in asked or not _active(context.live, other):
            continue
        who = f"instance {other.instance.name!r} (id {other.instance.id})" if other.instance else other.key
        if other.spec.port == entry.port:
            return f"port {entry.port} is used by {who}; stop it first or choose another port"
        if other.instance is not None and other.instance.name == entry.name:
            return f"the name {entry.name!r} is used by {who}; stop it first or choose another name"
    return None


def _active(live: Live, process: DesiredProcess) -> bool:
    seen = live.observed.get().process(process.key)
    return process.run or (seen is not None and seen.alive)


def _twin(entry: Entry, accepted: Sequence[Entry]) -> str | None:
    for other in accepted:
        if other.port == entry.port or other.name == entry.name:
            return f"its port or name is also asked for instance {other.id} in the same request"
    return None
