"""How much CPU time the processes of a session have used. Reads only."""

import os
from collections.abc import Iterable

from comfyd.host.procfs import all_pids

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def session_pids(leader: int) -> frozenset[int]:
    """Processes of the session that `leader` leads."""
    return frozenset(pid for pid in all_pids() if _session(pid) == leader)


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes have used, and those children that they have waited for. One that is gone counts nothing."""
    return sum(map(_ticks, pids)) / _TICKS_PER_S


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _ticks(pid: int) -> int:
    """Clock ticks in user and system mode."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])
