"""How processes end: pidfd readiness on the loop, one shared procfs pass for all stops, and what killed them."""

import asyncio
from collections.abc import Callable, Mapping

from comfyd.control.runs import Run
from comfyd.host import oom, proc
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


class MemberScan:
    """Finds what is left of process groups; requests that wait at the same time share one pass over procfs."""

    def __init__(self, leaders: Callable[[], Mapping[str, int]]) -> None:
        """leaders: uuid -> pid of all runs that are watched now; each leads a session of its own."""
        self._leaders = leaders
        self._waiting: list[tuple[str, int | None, asyncio.Future[list[Member]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def members(self, uuid: str, session: int | None) -> list[Member]:
        """Live processes that carry `uuid` or are in `session` (None: by uuid only)."""
        answer: asyncio.Future[list[Member]] = asyncio.get_running_loop().create_future()
        self._waiting.append((uuid, session, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        await asyncio.sleep(0)
        while self._waiting:
            batch, self._waiting = self._waiting, []
            uuids = [uuid for uuid, _, _ in batch]
            sessions = [s for _, s, _ in batch if s is not None]
            apart = [pid for uuid, pid in self._leaders().items() if uuid not in uuids]
            try:
                found = await asyncio.to_thread(scan_members, uuids, sessions, apart)
            except OSError as error:
                _fail(batch, error)
                continue
            for uuid, session, answer in batch:
                if not answer.done():
                    answer.set_result([m for m in found if m.uuid == uuid or m.stat.session == session])
        self._task = None


def _fail(batch: list[tuple[str, int | None, asyncio.Future[list[Member]]]], error: OSError) -> None:
    for _, _, answer in batch:
        if not answer.done():
            answer.set_exception(error)
