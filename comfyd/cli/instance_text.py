"""One instance for people: why it is not ready, what to do, how its last run ended."""

from collections.abc import Mapping, Sequence
from typing import Any

from comfyd.cli.text import age, clean
from comfyd.client.shapes import Condition, Instance

SHOWN_LINES = 20


def cause(conditions: Sequence[Condition] | None) -> str:
    """The first condition in short: `type/reason`."""
    return f"{conditions[0].get('type', '?')}/{conditions[0].get('reason', '?')}" if conditions else ""


def show_reasons(instance: Instance, now: str | None) -> None:
    """Each condition with its hint."""
    for condition in instance.get("conditions", []):
        print_reason(str(instance.get("name")), condition, now)


def print_reason(name: str, condition: Condition, now: str | None) -> None:
    """`name: type/reason for 3m12s: message`, and below it what to do."""
    lasting = age(condition.get("since"), now)
    since = f" for {lasting}" if lasting else ""
    print(clean(f"{name}: {condition.get('type')}/{condition.get('reason')}{since}: {condition.get('message')}"))
    if condition.get("hint"):
        print(clean(f"  -> {condition.get('hint')}"))


def show_instance(instance: Instance, now: str | None) -> None:
    """All there is to know of one, with the end of its log if the last run ended by itself."""
    shown: Mapping[str, Any] = instance
    facts = {
        "id": shown.get("id"),
        "environment": shown.get("environment"),
        "port": shown.get("port"),
        "state": shown.get("state"),
        "for": age(shown.get("since"), now),
        "pid": shown.get("pid"),
        "restarts": shown.get("restarts"),
        "GPUs": shown.get("gpus"),
        "override": _override(shown.get("override")),
        "log": shown.get("log"),
    }
    print(clean(shown.get("name")))
    for name, value in facts.items():
        if value not in (None, ""):
            print(clean(f"  {name:<12} {value}"))
    show_reasons(instance, now)
    _show_exit(shown.get("last_exit"), now)


def _override(given: Mapping[str, Any] | None) -> str:
    if not given:
        return ""
    what = given.get("want") or ", ".join(given.get("fields") or []) or ", ".join(given.get("kinds") or [])
    return f"{what} by {given.get('by')}"


def _show_exit(last: Mapping[str, Any] | None, now: str | None) -> None:
    if not last:
        return
    how = "ended as asked" if last.get("asked") else "ended by itself"
    ago = age(last.get("at"), now)
    print(clean(f"last run {how}{f' {ago} ago' if ago else ''}: {last.get('text')}"))
    for line in (last.get("last_lines") or [])[-SHOWN_LINES:] if not last.get("asked") else []:
        print(clean(f"  | {line}"))
