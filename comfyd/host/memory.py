"""What the kernel says of memory: how many processes it has killed for it, and how much is left. Reads only."""

import threading
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


class OomKills:
    """Tells which SIGKILL came from the kernel: `one_more` is true once for each kill counted since.

    The counter is that of our own control group, where our children live too; without one it is the whole system's.
    """

    def __init__(self, counter: Path | None = None) -> None:
        self._counter = counter if counter is not None else _counter()
        self._known = self._count()
        self._lock = threading.Lock()

    def one_more(self) -> bool:
        with self._lock:
            if self._count() <= self._known:
                return False
            self._known += 1
            return True

    def _count(self) -> int:
        """0 where nobody counts."""
        try:
            lines = self._counter.read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _counter(root: Path = CGROUP_ROOT, groups: Path = Path("/proc/self/cgroup")) -> Path:
    """The file that holds the `oom_kill` line: cgroup v2, v1, else the kernel's own."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        below = path.lstrip("/")
        if not controllers:
            places = [root / below / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            places = [root / "memory" / below / "memory.oom_control", root / "memory" / "memory.oom_control"]
        else:
            continue
        for place in places:
            if _counts(place):
                return place
    return Path("/proc/vmstat")


def _counts(place: Path) -> bool:
    try:
        return any(line.startswith("oom_kill ") for line in place.read_text().splitlines())
    except OSError:
        return False


def available_bytes() -> int | None:
    """What programs can still take, as the kernel estimates it; None if it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
