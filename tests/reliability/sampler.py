"""Looks at procfs every 20 ms and remembers what must never be seen: two trees of one key, two listeners of one port.

Owns: observations from outside. Must not: ask the daemon anything, or signal anybody.
"""

import os
import re
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PERIOD_S = 0.02
SETTLED_S = 1.0
"""A fresh pid may still exec; after this long what it is does not change any more."""

_KEY = re.compile(rb"/instances/([0-9]+)")
_LISTENER = re.compile(rb":([0-9A-F]{4}) [0-9A-F]+:0000 0A (?:\S+ +){5}([0-9]+)")
"""Port and inode of a line of /proc/net/tcp whose state is LISTEN."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One live process of a daemon's instances. uuid: of its generation."""

    pid: int
    starttime: int
    session: int
    uuid: str
    key: str


@dataclass
class Sampler:
    """`with Sampler(root, ports)`: root tells ours from others; violations grows, it is read at the end."""

    root: Path
    ports: frozenset[int]
    violations: list[str] = field(default_factory=list)
    samples: int = 0
    slowest_s: float = 0.0
    changes: deque[tuple[float, list[Seen]]] = field(default_factory=lambda: deque(maxlen=2000))
    """What was alive, noted whenever that had changed: (monotonic seconds, processes)."""
    generations: set[tuple[str, str]] = field(default_factory=set)
    """Every (key, uuid) ever seen."""
    _since: dict[int, float] = field(default_factory=dict)
    _known: dict[int, Seen] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Sampler":
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            began = time.monotonic()
            self.sample_once()
            self.samples += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def sample_once(self) -> None:
        by_key: dict[str, dict[str, Seen]] = {}
        seen = self.ours()
        if not self.changes or self.changes[-1][1] != seen:
            self.changes.append((time.monotonic(), seen))
            self.generations.update((one.key, one.uuid) for one in seen)
        for one in seen:
            by_key.setdefault(one.key, {})[one.uuid] = one
        for key, trees in by_key.items():
            if len(trees) > 1 and len(still := [one for one in trees.values() if _alive(one)]) > 1:
                self._note(f"two trees of {key}: {still}")
        for port, inodes in _listeners(self.ports).items():
            if len(inodes) > 1:
                self._note(f"{len(inodes)} listeners on port {port}")

    def ours(self) -> list[Seen]:
        """Every live process that a daemon on this root started."""
        with self._lock:
            now, pids = time.monotonic(), [int(name) for name in os.listdir("/proc") if name.isdigit()]
            self._since = {pid: self._since.get(pid, now) for pid in pids}
            seen = (self._look(pid, now) for pid in pids)
            return [one for one in seen if one is not None]

    def _look(self, pid: int, now: float) -> Seen | None:
        known = self._known.get(pid)
        if known is None and now - self._since[pid] > SETTLED_S:
            return None
        if known is not None and _alive(known):
            return known
        seen = _identify(pid, self.root)
        if seen is not None:
            self._known[pid] = seen
        return seen

    def _note(self, what: str) -> None:
        if len(self.violations) < 50:
            self.violations.append(f"{time.monotonic():.3f} {what}")


def _stat(pid: int) -> tuple[int, int] | None:
    """(session, starttime) of a live process; None for none and for zombies."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if fields[0] not in (b"Z", b"X"):
            return int(fields[3]), int(fields[19])
    return None


def _identify(pid: int, root: Path) -> Seen | None:
    with suppress(OSError):
        if not os.readlink(f"/proc/{pid}/cwd").startswith(str(root)):
            return None
        stat = _stat(pid)
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        found = re.search(rb"(?:^|\0)COMFYD_PROCESS_UUID=([0-9a-f]+)", environ)
        key = _KEY.search(Path(f"/proc/{pid}/cmdline").read_bytes())
        if stat and found and key:
            return Seen(pid, stat[1], stat[0], found[1].decode(), f"comfyui/{key[1].decode()}")
    return None


def _alive(one: Seen) -> bool:
    stat = _stat(one.pid)
    return stat is not None and stat[1] == one.starttime


def _listeners(ports: frozenset[int]) -> dict[int, set[bytes]]:
    found: dict[int, set[bytes]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for port, inode in _LISTENER.findall(Path(table).read_bytes()):
                if int(port, 16) in ports:
                    found.setdefault(int(port, 16), set()).add(inode)
    return found
