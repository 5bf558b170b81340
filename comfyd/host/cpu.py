"""How much CPU time the processes of a session have used. Reads only."""

import os

from comfyd.host.procfs import all_pids

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def session_cpu_s(leader: int) -> float:
    """CPU seconds of the living processes of a session, and of those children that they have waited for."""
    return sum(_ticks(pid, leader) for pid in all_pids()) / _TICKS_PER_S


def _ticks(pid: int, session: int) -> int:
    """Clock ticks in user and system mode; 0 for a process that is gone or of another session."""
    try:
        if os.getsid(pid) != session:
            return 0
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])
