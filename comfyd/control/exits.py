"""How processes end: pidfd readiness on the loop, one shared procfs pass for all stops, and what killed them."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from comfyd.control.runs import Run
from comfyd.control.together import Together
from comfyd.host import children, oom, proc
from comfyd.host.proc import Process, Status
from comfyd.host.procfs import Member, scan_members

WEAK_POLL_S = 1.0
KILLED_EXIT = 128 + 9
"""How a shell says that what it ran was killed."""


async def wait_exit(process: Process) -> None:
    """Return when the process has ended; works for children and adopted ones alike. Cancelling leaves it alone."""
    if process.pidfd is None:
        await _poll_exit(process)
        return
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    fd = process.pidfd
    loop.add_reader(fd, _settle, readable)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _poll_exit(process: Process) -> None:
    """Without a pidfd nothing tells of the end: look often at first, as after a signal, then once a second."""
    pause_s = WEAK_POLL_S / 50
    while not proc.has_ended(process.identity):
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, WEAK_POLL_S)


def ran_out_of_memory(run: Run, status: Status) -> bool:
    """Whether the kernel killed it: killed by nobody of us, and the counter of its cgroup rose since it last answered.

    Nobody tells the status of an adopted process; there the counter alone says it. Blocking.
    """
    killed = status.signal == "SIGKILL" or status.code == KILLED_EXIT or (run.adopted and status == Status())
    if not killed or run.stop is not None or run.kills_before is None:
        return False
    found = oom.read(run.kills_before.path)
    return found is not None and found.since(run.kills_before) > 0


@dataclass(frozen=True, slots=True)
class _Left:
    """Whose remains are looked for. session: None if its group is empty. child: its leader was a child of ours."""

    uuid: str
    session: int | None
    child: bool


class MemberScan:
    """Finds what is left of process groups; requests that wait at the same time share one pass over procfs."""

    def __init__(self, leaders: Callable[[], Mapping[str, int]]) -> None:
        """leaders: uuid -> pid of all runs that are watched now; each leads a session of its own."""
        self._leaders = leaders
        self._together: Together[_Left, list[Member]] = Together(self._look)

    async def members(self, uuid: str, session: int | None, *, child: bool = False) -> list[Member]:
        """Live processes that carry `uuid` or are in `session` (None: by uuid only).

        child: its leader has ended and was a child of ours, so that what it left behind is handed to us.
        """
        return await self._together.ask(_Left(uuid, session, child))

    async def _look(self, asked: list[_Left]) -> list[list[Member]]:
        if all(one.child and one.session is None for one in asked) and children.nobody_strange():
            return [[] for _ in asked]
        uuids = [one.uuid for one in asked]
        sessions = [one.session for one in asked if one.session is not None]
        apart = [pid for uuid, pid in self._leaders().items() if uuid not in uuids]
        found = await asyncio.to_thread(scan_members, uuids, sessions, apart)
        return [[m for m in found if m.uuid == one.uuid or m.stat.session == one.session] for one in asked]
