"""Reading a log to its end and beyond, across rotations by this process, truncations and a log that is made anew.

Owns: the place of one reader. Holds no descriptor and no bytes between two looks: the files are the buffer. A reader
that is further behind than what is kept goes on at the beginning of the log and is told.
Blocking: every call belongs in a thread.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from comfyd.host.rotate import KEEP, rotated, switching, turns

BLOCK = 64 * 1024
MAX_TAIL_BYTES = 1024 * 1024
_PATIENCE_S = 0.1


@dataclass(frozen=True, slots=True)
class Found:
    """What one look gave. gap: output before `data` was rotated away unread."""

    data: bytes
    gap: bool = False


def open_log(path: Path) -> int | None:
    """A descriptor of the regular file at `path`; None if there is none. Never blocks, never follows a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def tail_lines(path: Path, lines: int) -> bytes:
    """The last `lines` lines of the file at `path` within the cap, empty if it cannot be read."""
    return Follower(path).tail(lines)


class Follower:
    """One reader of the log at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = 0
        self._offset = 0
        self._inode: int | None = None

    def tail(self, lines: int) -> bytes:
        """The last `lines` lines, at most 1 MiB; `read` goes on behind them."""
        with switching:
            self._turn, self._offset, self._inode = turns(self._path), 0, None
            fd = open_log(self._path)
            if fd is None:
                return b""
            try:
                info = os.fstat(fd)
                start = max(0, info.st_size - MAX_TAIL_BYTES)
                data = os.pread(fd, info.st_size - start, start)
            finally:
                os.close(fd)
            self._offset, self._inode = start + len(data), info.st_ino
        return _last_lines(data[data.find(b"\n") + 1 :] if start else data, lines)

    def read(self) -> Found:
        """The next bytes, at most one block; empty if there are none now."""
        if not switching.acquire(timeout=_PATIENCE_S):
            return Found(b"")
        try:
            behind = turns(self._path) - self._turn
            while 0 < behind < KEEP:
                data = self._rest_of(rotated(self._path, behind))
                if data:
                    return Found(data)
                behind -= 1
            lost = behind >= KEEP
            if lost:
                self._start_anew()
            return Found(self._newest(), lost)
        finally:
            switching.release()

    def _rest_of(self, older: Path) -> bytes:
        """Of a file that has become a rotated one; behind its end the next one begins."""
        fd = open_log(older)
        size = 0
        if fd is not None:
            try:
                size = os.fstat(fd).st_size
                data = os.pread(fd, BLOCK, self._offset)
            finally:
                os.close(fd)
            if data:
                self._offset += len(data)
                return data
        self._turn, self._offset, self._inode = self._turn + 1, max(0, self._offset - size) if size else 0, None
        return b""

    def _newest(self) -> bytes:
        """Of the log itself. A shorter one was truncated by somebody else, another inode is a new log."""
        fd = open_log(self._path)
        if fd is None:
            return b""
        try:
            info = os.fstat(fd)
            if info.st_size < self._offset or self._inode not in (None, info.st_ino):
                self._offset = 0
            self._inode = info.st_ino
            data = os.pread(fd, BLOCK, self._offset)
        finally:
            os.close(fd)
        self._offset += len(data)
        return data

    def _start_anew(self) -> None:
        self._turn, self._offset, self._inode = turns(self._path), 0, None


def _last_lines(data: bytes, lines: int) -> bytes:
    if lines == 0:
        return b""
    cut = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        cut = data.rfind(b"\n", 0, cut)
        if cut < 0:
            return data
    return data[cut + 1 :]
