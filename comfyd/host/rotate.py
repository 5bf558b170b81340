"""Rotation of a log that another process appends to: copy, then truncate in place.

The child keeps its descriptor (O_APPEND: no hole after the truncation) and `tail -f` goes on. What is written between
the last look at the size and the truncation is lost: two system calls that no thread of ours comes between.
One process rotates a log; whoever follows it in that process asks `turns` under `switching` (host/follow.py).
Blocking: call it off the loop.
"""

import contextlib
import errno
import functools
import os
import threading
from pathlib import Path
from typing import Any

from comfyd.failpoint import failpoint

KEEP = 5
LIMIT_BYTES = 20 * 1024 * 1024
_NEARLY = 64 * 1024
_TRIES = 200
_LINE_BYTES = 64 * 1024

switching = threading.RLock()
"""Held while the names of rotated files and the contents of a log change together."""
_turns: dict[str, int] = {}

Piece = tuple[int, int | None]
"""First byte, and the one behind the last (None: up to the end, and then cut off the log)."""


def turns(path: Path) -> int:
    """How many files have become `<path>.1` in this process, skipped ones included. Ask it under `switching`."""
    return _turns.get(str(path), 0)


def rotated(path: Path, number: int) -> Path:
    """`<name>.1` is the newest."""
    return path.with_name(f"{path.name}.{number}")


def rotate(path: Path, keep: int = KEEP, limit: int = LIMIT_BYTES) -> int:
    """Move the contents of `path` to `<path>.1`, shifting older ones; at most `keep` files in all. Returns the bytes.

    A log that has grown far over `limit` bytes becomes several files; what would not be kept is not copied. On a full
    disk the oldest files make room. Raises OSError, and then the log is as it was (a full disk loses nothing of it).
    """
    while True:
        try:
            return _rotate(path, keep, limit)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(_fresh(path))
            if error.errno != errno.ENOSPC or not _drop_oldest(path, keep):
                raise


def _rotate(path: Path, keep: int, limit: int) -> int:
    source = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        pieces = _pieces(source, keep, limit)
        skipped = keep if pieces[0][0] else 0
        with switching if len(pieces) > 1 else contextlib.nullcontext():
            return [_place(source, path, keep, piece, len(pieces) + skipped) for piece in pieces][-1]
    finally:
        os.close(source)


def _pieces(source: int, keep: int, limit: int) -> list[Piece]:
    """One piece, or as many as a flood has made of it, each ending with a line where it can."""
    size = os.fstat(source).st_size
    if size <= limit + limit // 2:
        return [(0, None)]
    begin, found = _line_end(source, max(0, size - (keep - 1) * limit)), list[Piece]()
    while size - begin > limit and len(found) < keep - 2:
        end = _line_end(source, begin + limit)
        found.append((begin, end))
        begin = end
    return [*found, (begin, None)]


def _line_end(source: int, at: int) -> int:
    before = os.pread(source, min(_LINE_BYTES, at), at - min(_LINE_BYTES, at))
    newline = before.rfind(b"\n")
    return at if newline < 0 else at - len(before) + newline + 1


def _place(source: int, path: Path, keep: int, piece: Piece, new_turns: int) -> int:
    """Make a piece the newest rotated file. Returns the offset behind its last byte."""
    begin, end = piece
    target = os.open(_fresh(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        copied = _copy_to_end(source, target, begin) if end is None else begin + _copy(source, target, begin, end)
        with switching:
            _shift(path, keep)
            os.replace(_fresh(path), rotated(path, 1))
            if end is None:
                failpoint("log_copied")
                copied = _cut(source, target, copied)
                _turns[str(path)] = turns(path) + new_turns
    finally:
        os.close(target)
    return copied


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.rotating")


def _copy_to_end(source: int, target: int, copied: int) -> int:
    """Copy until what has been added meanwhile is small."""
    for _ in range(_TRIES):
        step = _copy(source, target, copied)
        copied += step
        if step <= _NEARLY:
            break
    return copied


def _cut(source: int, target: int, copied: int) -> int:
    """Truncate right after a look that found nothing new; a writer faster than us is cut at the last try."""
    libc, get_errno = _calls()
    for _ in range(_TRIES):
        copied += _copy(source, target, copied)
        if libc.lseek(source, 0, os.SEEK_END) == copied:
            break
    if libc.ftruncate(source, 0) != 0:
        raise OSError(get_errno(), os.strerror(get_errno()))
    return copied


@functools.cache
def _calls() -> tuple[Any, Any]:
    """The C library, called without giving up the interpreter's lock: two calls follow each other at once."""
    import ctypes

    libc = ctypes.PyDLL(None, use_errno=True)
    libc.lseek.argtypes, libc.lseek.restype = (ctypes.c_int, ctypes.c_long, ctypes.c_int), ctypes.c_long
    libc.ftruncate.argtypes, libc.ftruncate.restype = (ctypes.c_int, ctypes.c_long), ctypes.c_int
    return libc, ctypes.get_errno


def _copy(source: int, target: int, offset: int, end: int | None = None) -> int:
    """Copy from `offset` to `end`, or to the end as it is now; returns the bytes."""
    left = (os.fstat(source).st_size if end is None else end) - offset
    done = 0
    while done < left:
        part = os.pread(source, min(1 << 20, left - done), offset + done)
        if not part:
            break
        view = memoryview(part)
        while view:
            view = view[os.write(target, view) :]
        done += len(part)
    return done


def _shift(path: Path, keep: int) -> None:
    for number in range(keep - 1, 0, -1):
        older = rotated(path, number)
        with contextlib.suppress(FileNotFoundError):
            if number == keep - 1:
                older.unlink()
            else:
                os.replace(older, rotated(path, number + 1))


def _drop_oldest(path: Path, keep: int) -> bool:
    """Whether there was one to drop."""
    with switching:
        for number in range(keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                rotated(path, number).unlink()
                return True
    return False
