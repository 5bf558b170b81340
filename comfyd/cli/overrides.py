"""Wishes made through the API that stand over the files: `overrides list|clear`."""

from typing import Any

from comfyd.cli.match import address, one
from comfyd.cli.text import clean, print_json, print_table, say
from comfyd.cli.verb import Failure, Session, argument, verb


@verb("overrides list")
def list_(session: Session) -> None:
    """Show what is overridden, by whom and until when."""
    rows = session.client.overrides()
    if session.as_json:
        print_json({"overrides": rows})
        return
    if not rows:
        say("nothing is overridden: the files rule")
        return
    columns = ("key", "kind", "want", "fields", "by", "created_at", "expires_at")
    print_table(columns, [[_cell(row.get(c)) for c in columns] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


@verb("overrides clear", argument("name", metavar="NAME|ID|PORT|all", help="`all` = every override"))
def clear(session: Session, name: str) -> None:
    """Go back to what the files say. This may start, stop or restart the instance."""
    answer = session.client.clear_overrides(None if name == "all" else _target(session, name))
    if session.as_json:
        print_json(answer)
    else:
        say(clean(answer.get("message") or f"cleared {name}: the files rule"))


def _target(session: Session, name: str) -> str | int:
    """An instance if one matches; else the word itself, for an override of something that is not shown."""
    try:
        return address(one(session.client.status().get("instances", []), name))
    except Failure as failure:
        if failure.code == "unknown_instance" and any(name == row.get("key") for row in session.client.overrides()):
            return name
        raise
