"""How often the kernel killed for want of memory where a process lives: in its cgroup, else on the whole machine."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Kills:
    """A reading of one counter. path: its file."""

    path: str
    count: int

    def since(self, other: "Kills | None") -> int:
        """How many more than in an earlier reading of the same counter; 0 if there is none."""
        return self.count - other.count if other is not None and other.path == self.path else 0


def kills(pid: int, root: Path = Path("/")) -> Kills | None:
    """The counter that rises when the kernel kills `pid` for memory. None if it tells nothing.

    root: where `proc` and the cgroup mounts are found (tests).
    """
    for path in [*_cgroup_files(pid, root), root / "proc/vmstat"]:
        found = read(str(path))
        if found is not None:
            return found
    return None


def read(path: str) -> Kills | None:
    """The counter `oom_kill` of a file; None if it cannot be read or has none."""
    try:
        text = Path(path).read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdigit():
            return Kills(path, int(value))
    return None


def _cgroup_files(pid: int, root: Path) -> list[Path]:
    """Where the process's cgroup keeps it: the memory controller of version 1 where it has one, then version 2."""
    try:
        memberships = (root / f"proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return []
    one, two = _mounts(root)
    found: list[Path] = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(",") and one is not None:
            found.insert(0, root / _below(one, path) / "memory.oom_control")
        elif controllers == "" and two is not None:
            found.append(root / _below(two, path) / "memory.events")
    return found


Mount = tuple[str, str] | None


@functools.cache
def _mounts(root: Path) -> tuple[Mount, Mount]:
    """Where the memory controller of version 1, and version 2, are mounted."""
    try:
        lines = (root / f"proc/{os.getpid()}/mountinfo").read_text().splitlines()
    except OSError:
        return None, None
    return _mount(lines, "cgroup", "memory"), _mount(lines, "cgroup2", "")


def _mount(lines: list[str], kind: str, option: str) -> Mount:
    """(root within the hierarchy, mount point without the leading slash) of a cgroup mount."""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        words, tail = fields.split(), rest.split()
        if tail and tail[0] == kind and (not option or option in tail[-1].split(",")):
            return words[3], words[4].lstrip("/")
    return None


def _below(mount: tuple[str, str], path: str) -> str:
    """A cgroup's folder. A container may see its group's path from outside and only its own part mounted."""
    shown, at = mount
    inside = path if shown == "/" else path.removeprefix(shown)
    return f"{at}/{inside.strip('/')}"
