"""Verbs that work without a daemon: `run` (which is the daemon), `plan`, `validate`."""

import atexit
import contextlib
import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from comfyd.cli.text import clean, print_json, say
from comfyd.cli.verb import BAD_CONFIG, USAGE, Failure, Session, argument, between, verb
from comfyd.client import DaemonTimeout, DaemonUnreachable

if TYPE_CHECKING:
    from comfyd.settings import Settings

SIGNS = {"start": "+", "stop": "-", "install": "~"}
FILE = argument("file", nargs="?", metavar="FILE", help="stands in for the root's instances.json")


def settings_of(session: Session, **given: Any) -> "Settings":
    """Settings with the command line on top. Raises SettingsError (exit code 78)."""
    from comfyd.settings import load_settings

    return load_settings(root=session.root, **given)


@verb("run", argument("--port", type=between(int, 1, 65535), metavar="N", help="of the API (COMFYD_PORT, 8001)"))
def run(session: Session, port: int | None) -> int:
    """Run the daemon in the foreground. --json writes log records as JSON."""
    gc.disable()  # start-up makes what stays; the daemon turns it on again once it serves
    settings = settings_of(session, port=port, log_format="json" if session.as_json else None)
    from comfyd.host.files import refuse_if_locked
    from comfyd.wiring import paths_from

    paths = paths_from(settings)
    refuse_if_locked(paths.lock, f"the state folder {paths.state_dir}")  # importing the daemon takes longer
    from comfyd import daemon

    _leave_at_once(daemon.main(settings))


def _leave_at_once(code: int) -> NoReturn:
    """Everything is closed and on disk by now; taking the interpreter apart would only take a tenth of a second."""
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@verb("validate", FILE)
def validate(session: Session, file: str | None) -> int:
    """Check instances.json, the environments and services.json. Exit code 78 if the daemon would refuse anything."""
    settings = settings_of(session)
    from comfyd import offline

    result = offline.validate(settings, _existing(file))
    errors = [i for i in result.issues if i.severity != "warning"]
    others = [i for i in result.issues if i.severity == "warning"]
    valid = result.desired is not None and not errors
    if session.as_json:
        print_json(
            {
                "valid": valid,
                "state": result.state,
                "errors": [i.model_dump(mode="json") for i in errors],
                "warnings": [i.model_dump(mode="json") for i in others],
            }
        )
    else:
        for issue in result.issues:
            print(clean(issue.text()))
    verdict = "valid" if valid else "refused" if result.desired is None else "blocked"
    say(f"{verdict}: {len(errors)} errors, {len(others)} warnings")
    return 0 if valid else BAD_CONFIG


def _existing(file: str | None) -> Path | None:
    if file is None:
        return None
    path = Path(file)
    if not path.exists():
        raise Failure(f"{file} does not exist", USAGE, "missing_file")
    return path


@verb("plan", FILE, argument("--offline", action="store_true", help="do not ask a daemon"))
def plan(session: Session, file: str | None, offline: bool) -> int:
    """Show what would be installed, started and stopped, and why the rest waits. Changes nothing."""
    shown = _offline(session, file) if offline else _asked(session, file)
    if session.as_json:
        print_json(shown)
    else:
        _tell(shown)
    return 0


def _asked(session: Session, file: str | None) -> dict[str, Any]:
    path = _existing(file)
    try:
        view = session.client.plan(path.read_bytes() if path else None)
    except DaemonTimeout:
        raise
    except DaemonUnreachable:
        if session.url is not None:
            raise
        return _offline(session, file)
    return {"source": "daemon", "notes": [], **view}


def _offline(session: Session, file: str | None) -> dict[str, Any]:
    settings = settings_of(session)
    from comfyd import offline

    made = offline.plan_offline(settings, _existing(file))
    return {"source": "offline", "notes": list(made.notes), **made.view.model_dump(mode="json")}


def _tell(shown: dict[str, Any]) -> None:
    for note in shown["notes"]:
        say(f"note: {clean(note)}")
    for action in shown["actions"]:
        print(clean(f"{SIGNS.get(action['action'], '?')} {action['action']} {action['key']}: {action['reason']}"))
    for key, hold in shown["holds"].items():
        print(clean(f"! hold {key}: {hold['type']}/{hold['reason']}: {hold['message']}"))
        if hold.get("hint"):
            print(clean(f"       {hold['hint']}"))
    for key, warnings in shown.get("warnings", {}).items():
        for one in warnings:
            print(clean(f"? doubt {key}: {one['type']}/{one['reason']}: {one['message']}"))
            print(clean(f"       {one['hint']}"))
    if not shown["actions"]:
        say("nothing to do")
