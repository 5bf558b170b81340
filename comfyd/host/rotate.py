"""Rotation of a log that another process appends to: copy, then truncate in place.

The child keeps its descriptor (O_APPEND: no hole after the truncation) and `tail -f` goes on. Lines written between
the last copied byte and the truncation are lost; the copy is repeated until that gap is one system call wide.
Blocking: call it off the loop.
"""

import contextlib
import os
from pathlib import Path

from comfyd.failpoint import failpoint

KEEP = 5
LIMIT_BYTES = 20 * 1024 * 1024
_NEARLY = 64 * 1024
_TRIES = 200


def rotated(path: Path, number: int) -> Path:
    """`<name>.1` is the newest."""
    return path.with_name(f"{path.name}.{number}")


def rotate(path: Path, keep: int = KEEP) -> int:
    """Move the contents of `path` to `<path>.1`, shifting older ones; at most `keep` files in all. Returns the bytes.

    Raises OSError, and then the log is as it was (a full disk loses nothing).
    """
    source = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    fresh = path.with_name(f".{path.name}.rotating")
    try:
        target = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            copied = _copy_to_end(source, target)
            _shift(path, keep)
            os.replace(fresh, rotated(path, 1))
            failpoint("log_copied")
            copied = _cut(source, target, copied)
        finally:
            os.close(target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    finally:
        os.close(source)
    return copied


def _copy_to_end(source: int, target: int) -> int:
    """Copy until what has been added meanwhile is small."""
    copied = 0
    for _ in range(_TRIES):
        step = _copy(source, target, copied)
        copied += step
        if step <= _NEARLY:
            break
    return copied


def _cut(source: int, target: int, copied: int) -> int:
    """Truncate right after a copy that found next to nothing new; a writer faster than us is cut at the last try."""
    for _ in range(_TRIES):
        step = _copy(source, target, copied)
        copied += step
        if step == 0:
            break
    os.ftruncate(source, 0)
    return copied


def _copy(source: int, target: int, offset: int) -> int:
    """Copy from `offset` to the end as it is now; returns the bytes."""
    left = os.fstat(source).st_size - offset
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
