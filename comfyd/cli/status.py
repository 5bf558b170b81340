"""What runs: `status`, `health`, `reload`, `version`."""

import sys
import time
from typing import Any

from comfyd import __version__
from comfyd.cli.instance_text import cause, print_reason, show_instance, show_reasons
from comfyd.cli.match import one
from comfyd.cli.text import age, clean, print_json, print_table, say
from comfyd.cli.verb import BAD_CONFIG, DEGRADED, FAILED, TIMED_OUT, Session, argument, report, verb, version_text
from comfyd.client import ApiError, DaemonUnreachable
from comfyd.client.shapes import Config, Status

WATCH_PERIOD_S = 1.0
CALM = frozenset({"adopted", "nodes_carried"})
"""Conditions of environments that ask for nothing; `comfyd env list` shows them."""
COLUMNS = ("name", "id", "env", "port", "state", "pid", "since", "restarts", "reason")


@verb(
    "status",
    argument("name", nargs="?", metavar="NAME|ID|PORT", help="only this instance, with the end of its log"),
    argument("--watch", "-w", action="store_true", help="show it again after every change"),
)
def status(session: Session, name: str | None, watch: bool) -> int:
    """Show every instance and why it is not ready. Exit code 3: no daemon, or something wanted is not ready."""
    if watch:
        return _watch(session, name)
    try:
        seen = session.client.status()
    except DaemonUnreachable as error:
        return _not_running(session, error)
    return _shown(session, seen, name)


def _shown(session: Session, seen: Status, name: str | None) -> int:
    if name is None:
        _show(session, seen)
        return DEGRADED if degraded(seen) else 0
    found = one(seen.get("instances", []), name)
    if session.as_json:
        print_json(found)
    else:
        show_instance(found, seen.get("time"))
    return 0 if found.get("ready") or found.get("desired", "up") == "down" else DEGRADED


def degraded(seen: Status) -> bool:
    """Something that is wanted is not ready, or the newest files were refused or are missing."""
    wanted = [i for i in seen.get("instances", []) if i.get("desired", "up") == "up"]
    return not all(i.get("ready") for i in wanted) or seen.get("config", {}).get("state", "ok") != "ok"


def _not_running(session: Session, error: DaemonUnreachable) -> int:
    if session.as_json:
        print_json({"running": False, "degraded": True, "instances": [], "message": error.message})
        say(f"comfyd: {clean(error.message)}")
    else:
        report(error, False)
    return DEGRADED


def _watch(session: Session, name: str | None) -> int:
    shown: Any = None
    while True:
        try:
            seen = session.client.status()
        except DaemonUnreachable as error:
            return _not_running(session, error)
        facts = {k: v for k, v in seen.items() if k not in ("time", "plan")}
        if facts != shown:
            shown = facts
            if sys.stdout.isatty() and not session.as_json:
                print("\x1b[H\x1b[2J", end="")
            _shown(session, seen, name)
            sys.stdout.flush()
        time.sleep(WATCH_PERIOD_S)


def _show(session: Session, seen: Status) -> None:
    if session.as_json:
        print_json({**seen, "running": True, "degraded": degraded(seen)})
        return
    now, instances = seen.get("time"), seen.get("instances", [])
    rows = [
        (
            i.get("name"), i.get("id"), i.get("environment"), i.get("port"), i.get("state"), i.get("pid"),
            age(i.get("since"), now), i.get("restarts"), cause(i.get("conditions")),
        )
        for i in instances
    ]  # fmt: skip
    print_table(COLUMNS, rows)
    for instance in instances:
        if instance.get("desired", "up") == "up":
            show_reasons(instance, now)
    _show_environments(seen, now)
    if seen.get("durability") == "async":
        say(
            "durability: async (the task database has no synchronous standby: a failover may lose what it acknowledged)"
        )
    for pause in seen.get("paused", []):
        what = f"queue of {pause.get('environment')}" if pause.get("environment") else "queue"
        say(clean(f"the {what} is paused since {pause.get('since')}, by {pause.get('by')}: comfyd queue resume"))
    config = seen.get("config", {})
    if config.get("state", "ok") != "ok":
        say(f"config is {config.get('state')}: {clean(config.get('path'))}")
    if config.get("polling"):
        say("the system gives no notice of edits: files are compared every COMFYD_POLL_S seconds")
    _show_issues(config)


def _show_issues(config: Config) -> None:
    for issue in config.get("issues", []):
        place = f":{issue.get('line')}:{issue.get('column')}" if issue.get("line") else ""
        hint = f" ({issue.get('hint')})" if issue.get("hint") else ""
        say(clean(f"{issue.get('file')}{place}: {issue.get('severity')}: {issue.get('message')}{hint}"))


def _show_environments(seen: Status, now: str | None) -> None:
    """Those that are not at rest, and what is wrong with the others."""
    for each in seen.get("environments", []):
        state, step = each.get("state"), each.get("install", {}).get("step")
        found = [c for c in each.get("conditions", []) if c.get("type") not in CALM]
        if state in ("installed", "absent") and not found:
            continue
        name = f"environment {each.get('name')}"
        print(clean(f"{name}: {state}" + (f", step {step}" if step else "")))
        for condition in found:
            print_reason(name, condition, now)


@verb("health", argument("--ready", action="store_true", help="ask for readiness (exit code 3 if not ready)"))
def health(session: Session, ready: bool) -> int:
    """Ask whether the daemon answers (for container health checks)."""
    if not ready:
        answer = session.client.health()
        print_json(answer) if session.as_json else print(clean(answer.get("status")))
        return 0 if answer.get("status") == "healthy" else FAILED
    try:
        answer = session.client.ready()
    except ApiError as error:
        if error.status != 503:
            raise
        print_json({"ready": False, "message": error.message, "details": error.details}) if session.as_json else None
        say(f"not ready: {clean(error.message)}")
        return DEGRADED
    print_json({"ready": True, **answer}) if session.as_json else print("ready")
    return 0


@verb("reload")
def reload(session: Session) -> int:
    """Read the files again and reconcile now. Exit code 78 if they were refused, 4 if it is not done yet."""
    answer = session.client.reload()
    if session.as_json:
        print_json(answer)
    else:
        say(clean(answer.get("message") or "reconciled", lines=True))
        _show_issues(answer.get("config", {}))
    return {"refused": BAD_CONFIG, "pending": TIMED_OUT}.get(answer.get("status", ""), 0)


@verb("version")
def version(session: Session) -> None:
    """Print the version of this program."""
    print_json({"version": __version__}) if session.as_json else print(version_text())
