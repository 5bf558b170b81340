"""What the checks share, looked up once: the files, the daemon's answer or why there is none, our processes."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyd import __version__, offline
from comfyd.client import ApiError, Client, DaemonUnreachable
from comfyd.core.config import fallback_state, state_from_json
from comfyd.core.plan import plan
from comfyd.core.resolve import autolaunch
from comfyd.core.view import ViewInput, describe
from comfyd.environments.scan import read_config_files
from comfyd.host import clock, proc, procfs
from comfyd.host.files import read_bounded
from comfyd.host.journal import recorded
from comfyd.model.base import Now
from comfyd.model.desired import DesiredState
from comfyd.model.observed import ObservedState
from comfyd.model.paths import Paths
from comfyd.model.process import ResolvedState
from comfyd.model.sources import ParseResult
from comfyd.settings import Settings
from comfyd.wiring import paths_from, variables_from


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon said. status: of `GET /api/comfyui/status`, None if it did not answer; trouble says why.

    stats: tasks by state, None if the queue cannot be read. took_s: seconds that the status took.
    """

    status: Mapping[str, Any] | None = None
    stats: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None
    trouble: str = ""
    took_s: float = 0.0
    where: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """desired: what holds now (the last good state if the files are broken). wished, observed: of it, without a daemon.

    status: the daemon's, or the same made from disk. ours: pid -> key of recorded processes that still live.
    stray: pids that carry our tag and are in no record. daemon_pid: who holds the state folder.
    """

    settings: Settings
    paths: Paths
    parsed: ParseResult
    desired: DesiredState
    wished: ResolvedState
    observed: ObservedState
    now: Now
    answer: Answer
    status: Mapping[str, Any]
    ours: Mapping[int, str]
    stray: tuple[int, ...]
    daemon_pid: int | None

    @property
    def asked(self) -> bool:
        return self.answer.status is not None


def look(settings: Settings, client: Client) -> Scene:
    """Gather everything. Never raises for what is broken; takes as long as the daemon needs to answer."""
    paths, now = paths_from(settings), Now(clock.mono(), clock.wall())
    parsed = offline.validate(settings)
    desired = parsed.desired or _last_good(paths) or fallback_state(read_config_files(paths), variables_from(settings))
    wished, observed = offline.look(settings, desired, now)
    answer = _ask(client)
    status = answer.status
    if status is None:
        view = ViewInput(
            wished, observed, plan(wished, observed, now), now, __version__, config_state=parsed.state,
            config_path=str(paths.instances_file), autolaunch=autolaunch(desired, variables_from(settings)),
        )  # fmt: skip
        status = describe(view).model_dump(mode="json")
    ours, stray = _processes(paths)
    return Scene(
        settings, paths, parsed, desired, wished, observed, now, answer, status, ours, stray, _holder(paths.state_dir)
    )


def _last_good(paths: Paths) -> DesiredState | None:
    saved = read_bounded(paths.last_good, 64 * 1024 * 1024)
    return state_from_json(saved.data) if saved.data is not None else None


def _ask(client: Client) -> Answer:
    begun = time.monotonic()
    try:
        status = client.status()
    except (DaemonUnreachable, ApiError) as error:
        return Answer(trouble=error.message, where=client.address)
    took = time.monotonic() - begun
    try:
        decided: Mapping[str, Any] | None = client.plan()
        stats: Mapping[str, Any] | None = client.stats()
    except (DaemonUnreachable, ApiError) as error:
        return Answer(status, trouble=error.message, took_s=took, where=client.address)
    return Answer(status, stats, decided, took_s=took, where=client.address)


def _processes(paths: Paths) -> tuple[dict[int, str], tuple[int, ...]]:
    records = recorded(paths.journal)
    here = (clock.boot_id(), procfs.pid_namespace())
    ours: dict[int, str] = {}
    for record in records:
        identity = proc.Identity(record["pid"], record["starttime"], record["boot_id"], record["pidns"], record["uuid"])
        if (identity.boot_id, identity.pidns) == here and proc.still(identity):
            ours[identity.pid] = str(record["key"])
    known, owner = {str(record["uuid"]) for record in records}, procfs.owner_tag(paths.state_dir)
    tagged = (pid for pid in procfs.all_pids() if pid != os.getpid() and procfs.owner_of(pid) == owner)
    return ours, tuple(pid for pid in tagged if (procfs.uuid_of(pid) or "") not in known)


def _holder(state_dir: Path) -> int | None:
    """The daemon that holds the state folder, from its lock file; the lock itself is not touched."""
    lock = state_dir / "daemon.lock"
    read = read_bounded(lock, 200)
    words = (read.data or b"").split()
    if len(words) != 2 or not words[1].isdigit():
        return None
    pid = int(words[1])
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for name in names:
        try:
            if os.path.samefile(f"/proc/{pid}/fd/{name}", lock):
                return pid
        except OSError:
            continue
    return None
