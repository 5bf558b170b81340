"""Looks at procfs every 20 ms and remembers what must never be seen: two trees of one key, two listeners of one port.

A process of its own, so that a busy test does not make it blind. Owns: observations from outside. Must not: ask the
daemon anything, or signal anybody.
"""

import json
import os
import re
import select
import subprocess
import sys
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
REPOSITORY = Path(__file__).parents[2]
TOLD_EVERY = 10


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
    _process: subprocess.Popen[bytes] | None = None
    _reader: threading.Thread | None = None

    def __enter__(self) -> "Sampler":
        argv = [sys.executable, "-m", "tests.reliability.sampler", str(self.root), *map(str, sorted(self.ports))]
        self._process = subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._hear, args=(self._process,), name="sampler", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._reader is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(30) == 0, "the sampler failed"
        finally:
            self._process.kill()
            self._reader.join(10)

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                told = json.loads(line)
                self.samples, self.slowest_s = told["samples"], told["slowest_s"]
                self.violations += told["violations"]
                if told["alive"] is not None:
                    self._changed(told["at"], [Seen(*one) for one in told["alive"]])

    def _changed(self, at: float, seen: list[Seen]) -> None:
        self.changes.append((at, seen))
        self.generations.update((one.key, one.uuid) for one in seen)

    def sample_once(self) -> None:
        by_key: dict[str, dict[str, Seen]] = {}
        seen = self.ours()
        if not self.changes or self.changes[-1][1] != seen:
            self._changed(time.monotonic(), seen)
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


def main(root: str, *ports: str) -> None:
    """Sample until the one who started this closes our standard input; tell what is new as lines of JSON."""
    with suppress(OSError):
        os.nice(-10)
    one, told = Sampler(Path(root), frozenset(map(int, ports))), 0
    while True:
        over = bool(select.select([sys.stdin], [], [], PERIOD_S)[0])
        began, changes = time.monotonic(), len(one.changes) and one.changes[-1][0]
        one.sample_once()
        one.samples += 1
        one.slowest_s = max(one.slowest_s, time.monotonic() - began)
        changed = len(one.changes) and one.changes[-1][0] != changes
        if over or changed or told < len(one.violations) or one.samples % TOLD_EVERY == 0:
            at, alive = one.changes[-1] if changed else (0.0, None)
            news = {
                "samples": one.samples, "slowest_s": one.slowest_s, "violations": one.violations[told:], "at": at,
                "alive": None if alive is None else [[s.pid, s.starttime, s.session, s.uuid, s.key] for s in alive],
            }  # fmt: skip
            print(json.dumps(news), flush=True)
            told = len(one.violations)
        if over:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
