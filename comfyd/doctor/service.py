"""Checks of comfyd itself: its version, its settings and files, the daemon, the queue."""

import platform
import sqlite3
from collections.abc import Iterable

from comfyd import __version__
from comfyd.core.findings import SLOW_ANSWER_S, queue_finding, sqlite_finding
from comfyd.doctor.scene import Scene
from comfyd.model.finding import Finding

SHOWN_ISSUES = 20


def version(scene: Scene) -> Iterable[Finding]:
    """Of comfyd, Python and the kernel; the daemon's if it is another one."""
    message = f"comfyd {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    yield Finding(name="version", level="ok", message=message)
    theirs = scene.answer.status.get("version") if scene.answer.status is not None else None
    if theirs not in (None, __version__):
        message = f"the daemon runs version {theirs}, this is {__version__}"
        hint = "SIGUSR2 lets the daemon take up the new code; its instances go on"
        yield Finding(name="version", level="warning", message=message, hint=hint)


def sqlite(scene: Scene) -> Iterable[Finding]:
    """The SQLite that this Python is linked with, which is the daemon's too."""
    major, minor, patch = sqlite3.sqlite_version_info[:3]
    yield sqlite_finding((major, minor, patch))


def config(scene: Scene) -> Iterable[Finding]:
    """What `comfyd validate` says, and whether the daemon runs with these files."""
    issues = scene.parsed.issues
    for issue in issues[:SHOWN_ISSUES]:
        level = "warning" if issue.severity == "warning" else "error"
        hint = issue.hint or "`comfyd validate` shows all of them"
        place = f"{issue.file}:{issue.line}" if issue.line else issue.file
        yield Finding.model_validate(
            {"name": "config", "level": level, "message": f"{place}: {issue.message}", "hint": hint}
        )
    if len(issues) > SHOWN_ISSUES:
        message = f"{len(issues) - SHOWN_ISSUES} more"
        yield Finding(name="config", level="warning", message=message, hint="`comfyd validate` shows all of them")
    if not issues:
        message = f"{len(scene.desired.instances)} instances, {len(scene.desired.environments)} environments, no issue"
        yield Finding(name="config", level="ok", message=message)
    state = scene.status.get("config", {}).get("state")
    if scene.asked and state != "ok":
        message = f"the daemon goes on with the last good files: the newest are {state}"
        yield Finding(name="config", level="error", message=message, hint="correct them; the edit applies at once")


def daemon(scene: Scene) -> Iterable[Finding]:
    """Whether the API answers, and how fast."""
    answer, pid = scene.answer, scene.daemon_pid
    if answer.status is None:
        yield _silent(scene)
        return
    if answer.trouble:
        hint = "read the end of workspace/logs/comfyd.log"
        yield Finding(name="daemon", level="error", message=f"it answers in part: {answer.trouble}", hint=hint)
    who = f", pid {pid}" if pid else ""
    message = f"it answers at {answer.where}{who} in {answer.took_s * 1000:.0f} ms"
    if answer.took_s > SLOW_ANSWER_S:
        hint = "is the machine out of CPU, memory or disk? `workspace/logs/comfyd.log` tells what it does"
        yield Finding(name="daemon", level="warning", message=message, hint=hint)
    else:
        yield Finding(name="daemon", level="ok", message=message)


def _silent(scene: Scene) -> Finding:
    if scene.daemon_pid is not None:
        message = f"it runs (pid {scene.daemon_pid}) but does not answer: {scene.answer.trouble}"
        hint = "wait if it has just been started; read the end of workspace/logs/comfyd.log; SIGUSR1 writes its state"
        return Finding(name="daemon", level="error", message=message, hint=hint)
    message = f"no daemon runs on {scene.paths.root}: {scene.answer.trouble}"
    return Finding(name="daemon", level="warning", message=message, hint="`comfyd run` starts it")


def queue(scene: Scene) -> Iterable[Finding]:
    """Whether tasks wait for something."""
    if scene.answer.stats is None:
        return
    ready = sum(1 for one in scene.status.get("instances", []) if one.get("ready"))
    busy = [int(g["utilisation"]) for g in scene.status.get("gpus", []) if g.get("utilisation") is not None]
    yield queue_finding(scene.answer.stats, ready, busy)
