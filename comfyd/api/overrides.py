"""Overrides: what the API asked for beside the files, by whom and until when."""

from typing import Annotated, Any, Literal

from pydantic import Field

from comfyd.api.context import ApiContext
from comfyd.api.operation import Call, op
from comfyd.api.views import find_instance, status_view
from comfyd.api.wire import Answer, Ask, Instant
from comfyd.api.wishes import fresh, run_down, run_up, write
from comfyd.core.config import check_fields, overlay
from comfyd.core.config_report import Report
from comfyd.core.shown import rfc3339
from comfyd.errors import ComfydError
from comfyd.model.desired import Override

WISHES = ("run", "spec")


class OverrideView(Answer):
    """One wish. kind run: `want`; spec: `fields` of an instances.json entry; restart and install: a token."""

    kind: Literal["run", "spec", "restart", "install"]
    key: str
    want: Literal["up", "down"] | None
    fields: dict[str, Any]
    token: str | None
    scope: str | None
    created_at: str
    expires_at: str | None
    by: str


class OverridesAnswer(Answer):
    overrides: tuple[OverrideView, ...]


class Cleared(Answer):
    deleted: int
    message: str


class PutOverride(Ask):
    """Replaces the wishes for the instance. `fields`: any fields of an instances.json entry but `id`."""

    want: Literal["up", "down"] | None = None
    fields: dict[str, Any] = Field(default_factory=dict)
    restart: Annotated[bool, Field(strict=True)] = False
    expires_at: Instant = None


@op("GET", "/api/comfyui/overrides", scope="admin", response=OverridesAnswer)
async def list_overrides(call: Call[None, None]) -> OverridesAnswer:
    """Every override that is stored."""
    return _shown(await call.context.node.overrides())


@op("GET", "/api/comfyui/overrides/{ref}", scope="admin", response=OverridesAnswer, errors=(404,))
async def show_overrides(call: Call[None, None]) -> OverridesAnswer:
    """The overrides of one instance (id or name) or environment."""
    return _shown(await _of(call.context, call.path("ref")))


@op("PUT", "/api/comfyui/overrides/{ref}", scope="admin", body=PutOverride, response=OverridesAnswer, errors=(404,))
async def put_override(call: Call[PutOverride, None]) -> OverridesAnswer:
    """Set what is overridden for one instance; an id that no file declares makes a new instance."""
    context = call.context
    key = _key(context, call.path("ref"))
    expires = None if call.body.expires_at is None else call.body.expires_at / 1000
    if expires is not None and expires <= context.clock().wall:
        raise ComfydError("/expires_at: is in the past", code="validation_failed")
    made = [_until(one, expires) for one in _made(call, key)]
    if not made:
        raise ComfydError("give at least one of want, fields and restart", code="validation_failed")
    await write(context, made, [(kind, key) for kind in WISHES])
    return _shown(made)


def _until(one: Override, expires: float | None) -> Override:
    """A token never ends: without it the fingerprint would change back, which is one more restart."""
    return one.model_copy(update={"expires_at": expires}) if one.kind in WISHES else one


@op("DELETE", "/api/comfyui/overrides", scope="admin", response=Cleared)
async def clear_overrides(call: Call[None, None]) -> Cleared:
    """Back to the files, for everything."""
    deleted = await _back_to_files(call.context, None)
    return Cleared(deleted=deleted, message="All overrides cleared")


@op("DELETE", "/api/comfyui/overrides/{ref}", scope="admin", response=Cleared, errors=(404,))
async def clear_override(call: Call[None, None]) -> Cleared:
    """Back to the files, for one instance or environment."""
    found = await _of(call.context, call.path("ref"))
    deleted = await _back_to_files(call.context, found[0].key)
    return Cleared(deleted=deleted, message=f"Overrides of {found[0].key} cleared")


async def _back_to_files(context: ApiContext, key: str | None) -> int:
    """Delete wishes; restart and install tokens stay, they differ from nothing and losing one would be a change."""
    deleted = await context.node.delete_overrides(key, WISHES)
    context.live.wake.set()
    return deleted


async def _of(context: ApiContext, ref: str) -> tuple[Override, ...]:
    """The overrides that `ref` means. Raises unknown_override."""
    stored = await context.node.overrides()
    keys = [ref, f"comfyui/{ref}"]
    keys += [one.key for one in status_view(context).instances if one.name == ref]
    for key in keys:
        found = tuple(one for one in stored if one.key == key)
        if found:
            return found
    known = sorted({one.key for one in stored})
    raise ComfydError(
        f"nothing is overridden for {ref[:100]!r}; there are overrides for: {', '.join(known) or 'nothing'}",
        code="unknown_override",
        details={"known": known},
    )


def _key(context: ApiContext, ref: str) -> str:
    """The process key of an id (declared or not) or of a known name."""
    if ref.isascii() and ref.isdigit() and len(ref) <= 10 and int(ref) < 2**31:
        return f"comfyui/{int(ref)}"
    return find_instance(context, ref).key


def _made(call: Call[PutOverride, None], key: str) -> list[Override]:
    context, body, by = call.context, call.body, call.caller
    made: list[Override] = []
    if body.fields:
        fields = _checked(context, key, body.fields)
        made.append(Override(kind="spec", key=key, fields=fields, created_at=context.clock().wall, by=by))
    if body.restart:
        made.append(fresh(context, "restart", key, by))
    if body.want is not None:
        made.append((run_up if body.want == "up" else run_down)(context, key, by))
    return made


def _checked(context: ApiContext, key: str, given: dict[str, Any]) -> dict[str, Any]:
    """The fields as an override keeps them. Raises validation_failed with every error."""
    prefix, _, number = key.partition("/")
    if prefix != "comfyui":
        raise ComfydError(
            f"/fields: {key} is not a ComfyUI instance, only want and restart apply", code="validation_failed"
        )
    if given.get("id", int(number)) != int(number):
        raise ComfydError("/fields/id: the id is the one of the address", code="validation_failed")
    fields, issues = check_fields(given)
    declared = next((one for one in context.live.config.get().desired.instances if one.key == key), None)
    report = Report("request")
    if not any(issue.severity == "error" for issue in issues):
        overlay(declared, {"id": int(number), **fields}, report)
    wrong = [issue for issue in (*issues, *report.issues) if issue.severity == "error"]
    if wrong:
        errors = [{"path": f"/fields{one.path}", "message": one.message, "hint": one.hint} for one in wrong]
        raise ComfydError(
            f"{errors[0]['path']}: {errors[0]['message']}", code="validation_failed", details={"errors": errors}
        )
    return {"id": int(number), **fields} if declared is None else fields


def _shown(overrides: list[Override] | tuple[Override, ...]) -> OverridesAnswer:
    return OverridesAnswer(overrides=tuple(_view(one) for one in overrides))


def _view(one: Override) -> OverrideView:
    return OverrideView(
        kind=one.kind, key=one.key, want=one.want.value if one.want else None, fields=one.fields, token=one.token,
        scope=one.scope, created_at=rfc3339(one.created_at) or "", expires_at=rfc3339(one.expires_at), by=one.by,
    )  # fmt: skip
