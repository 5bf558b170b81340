"""Which overrides count now, and the instance that one makes of an entry of the file.

Owns: expiry, scope, what an override may not say. Must not: decide what runs (resolve does).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from comfyd.core.config import overlay
from comfyd.core.config_report import Report
from comfyd.model.base import Condition, Now
from comfyd.model.desired import InstanceSpec, Override
from comfyd.model.sources import MachineFacts, Variables

_PREFIX = "comfyui/"


@dataclass(frozen=True, slots=True)
class Overrides:
    """The overrides in force, by kind and key."""

    run: Mapping[str, Override]
    spec: Mapping[str, Override]
    restart: Mapping[str, Override]
    install: Mapping[str, Override]
    next_expiry: float | None

    def restart_token(self, key: str) -> str | None:
        return self.restart[key].token if key in self.restart else None


def in_force(overrides: Iterable[Override], facts: MachineFacts, now: Now) -> Overrides:
    kinds: dict[str, dict[str, Override]] = {"run": {}, "spec": {}, "restart": {}, "install": {}}
    expiries: list[float] = []
    for one in sorted(overrides, key=lambda o: (o.created_at, o.by, o.token or "")):
        lasting = one.kind in ("restart", "install")  # losing a token would be a change: one more restart or rebuild
        expired = one.expires_at is not None and one.expires_at <= now.wall and not lasting
        if expired or one.scope not in (None, facts.container):
            continue
        kinds[one.kind][one.key] = one
        if one.expires_at is not None and not lasting:
            expiries.append(one.expires_at)
    return Overrides(**kinds, next_expiry=min(expiries, default=None))


def applied(
    base: InstanceSpec | None, override: Override, variables: Variables, defaults: Mapping[str, str]
) -> tuple[InstanceSpec | None, Condition]:
    """The instance that an override asks for, or why it asks for none."""
    report = Report(f"override of {override.key}")
    number = override.key.removeprefix(_PREFIX)
    fields = {**defaults, **override.fields}
    if not override.key.startswith(_PREFIX) or not number.isascii() or not number.isdigit():
        report.error("bad_value", f"{override.key} names no instance")
    elif fields.setdefault("id", int(number)) != int(number):
        report.error("bad_value", f"its fields belong to id {fields['id']}")
    made = overlay(base, fields, report)
    if made is not None and made.port == variables.api_port:
        report.error("api_port", f"port {made.port} is the API's own port")
    message = "; ".join(i.message for i in report.issues if i.severity == "error")
    hint = "`comfyd overrides clear` returns to the file"
    reason = Condition("held", "override_invalid", f"the override of {override.key} is invalid: {message}", hint)
    return (None if report.failed else made), reason
