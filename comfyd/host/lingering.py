"""Why a process lives on that the kernel was told to kill. Reads only; blocking."""

import os
from pathlib import Path

from comfyd.host.procfs import read_stat

FREEZER = Path("/sys/fs/cgroup/freezer")
_WORDS = {
    "frozen": "its cgroup is frozen",
    "in_kernel": "it is stuck in a system call, perhaps of a driver or a dead network disk",
    "unknown": "the kernel has not ended it yet",
}


def why_it_lives(pid: int) -> tuple[str, str]:
    """(`frozen` | `in_kernel` | `unknown`, the same in words). A frozen process of cgroup v1 dies once it is thawed."""
    stat = read_stat(pid)
    reason = "unknown"
    if _frozen(pid):
        reason = "frozen"
    elif stat is not None and stat.state == "D":
        reason = "in_kernel"
    return reason, _WORDS[reason]


def _frozen(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in lines if line.split(":", 2)[1] == "freezer")
        return (FREEZER / os.path.relpath(path, "/") / "freezer.state").read_text().strip() != "THAWED"
    except (OSError, StopIteration, IndexError, UnicodeDecodeError):
        return False
