"""What the kernel says of processes: their stat, our marks on them, who is left of a run. Reads only, but for `mark`.

A run is marked twice: by a uuid in its environment, which anybody can read, and by a resource limit that nobody uses,
which stays on all that descends from it when it leaves its session and its parent and casts off its environment.
"""

import contextlib
import functools
import hashlib
import os
import resource
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

UUID_VARIABLE = "COMFYD_PROCESS_UUID"
OWNER_VARIABLE = "COMFYD_PROCESS_OWNER"
_CHUNK = 128 * 1024
_MARK = 1 << 60
"""A mark: 36,000 years of real-time scheduling without a pause, in microseconds; the lower 48 bits tell runs apart."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The few fields of /proc/<pid>/stat that matter here."""

    pid: int
    name: str
    state: str
    ppid: int
    session: int
    starttime: int


@dataclass(frozen=True, slots=True)
class Member:
    """One process of one of our groups."""

    stat: Stat
    uuid: str | None


def read_stat(pid: int) -> Stat | None:
    """None if there is no such process (any more)."""
    raw = _read(f"/proc/{pid}/stat")
    if not raw:
        return None
    head, _, tail = raw.decode("utf-8", "replace").rpartition(")")
    fields = tail.split()
    return Stat(pid, head.partition("(")[2], fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def uuid_of(pid: int) -> str | None:
    """The uuid of ours that a process carries in its environment."""
    return _variable_of(pid, UUID_VARIABLE)


def owner_of(pid: int) -> str | None:
    """Which daemon (state folder) started it."""
    return _variable_of(pid, OWNER_VARIABLE)


def mark(pid: int, uuid: str) -> None:
    """Put the mark of a run on a process before it begets others. Where that is refused, uuid and session remain."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_RTTIME)
        resource.prlimit(pid, resource.RLIMIT_RTTIME, (_mark_of(uuid), hard))


def _mark_of(uuid: str) -> int:
    return _MARK | int.from_bytes(hashlib.sha256(uuid.encode()).digest()[:6], "big")


def _mark_on(pid: int) -> int:
    """What stands where a mark would: mostly no limit (-1), or 0 if we may not ask."""
    try:
        return resource.prlimit(pid, resource.RLIMIT_RTTIME)[0]
    except OSError:
        return 0


def owner_tag(state_dir: Path) -> str:
    """What the daemon of a state folder writes into OWNER_VARIABLE of all it starts."""
    return hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:16]


def command_line(pid: int) -> str:
    """Its arguments with spaces between; empty if it is gone or a kernel thread."""
    return _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()


def variables_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it may not be read."""
    pairs = (part.partition(b"=") for part in _read(f"/proc/{pid}/environ").split(b"\0") if b"=" in part)
    return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, _, value in pairs}


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children_of(pid: int) -> list[int]:
    """Its children of all threads, dead ones that nobody has reaped included. Empty if it is gone."""
    if not _lists_children():
        return [child for child in all_pids() if (stat := read_stat(child)) is not None and stat.ppid == pid]
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(word) for thread in threads for word in _read(f"/proc/{pid}/task/{thread}/children").split()]


@functools.cache
def _lists_children() -> bool:
    """Whether the kernel was built with CONFIG_PROC_CHILDREN."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def scan_members(uuids: Sequence[str], sessions: Sequence[int], apart: Collection[int] = ()) -> list[Member]:
    """Every live process that carries one of `uuids` or its mark, or is in one of `sessions` (one pass for all stops).

    A process that we start begins a session; what descends from it stays in that one or begins its own. So the
    sessions of the kernel, of this daemon, and of its other runs (`apart`: their leaders) hold nothing of it, and the
    system call that tells the session saves reading the files of most processes.
    """
    wanted, groups = set(uuids), set(sessions)
    marks = {_mark_of(uuid): uuid for uuid in uuids}
    elsewhere = ({0, os.getsid(0)} | set(apart)) - groups
    found: list[Member] = []
    for pid in all_pids():
        try:
            session = os.getsid(pid)
        except OSError:
            continue
        if session in elsewhere:
            continue
        uuid = marks.get(_mark_on(pid)) or uuid_of(pid)
        if uuid not in wanted and session not in groups:
            continue
        stat = read_stat(pid)
        if stat is not None and stat.state not in "ZX":
            found.append(Member(stat, uuid))
    return found


def pid_namespace() -> int:
    """Inode of our pid namespace."""
    return os.stat("/proc/self/ns/pid").st_ino


def _variable_of(pid: int, name: str) -> str | None:
    found = b"\0" + _read(f"/proc/{pid}/environ")
    _, present, rest = found.partition(b"\0" + name.encode() + b"=")
    return rest.partition(b"\0")[0].decode("ascii", "replace") if present else None


def _read(path: str) -> bytes:
    """The whole file; empty if it cannot be read (any more)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = [os.read(fd, _CHUNK)]
        while parts[-1]:
            parts.append(os.read(fd, _CHUNK))
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)
