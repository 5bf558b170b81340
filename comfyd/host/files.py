"""Files: bounded reads, atomic writes, exclusive locks. Knows no format."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from comfyd.errors import LockHeldError
from comfyd.failpoint import failpoint

MAX_CONFIG_BYTES = 4 * 1024 * 1024
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class ReadResult:
    """data, or the reason (`missing`, `unreadable`, `not_a_file`, `too_large`) why there is none.

    inode: of the file that was read; unlinked: no name leads to it any more, it is only still mounted or open.
    """

    data: bytes | None
    problem: str | None = None
    detail: str = ""
    inode: int | None = None
    unlinked: bool = False


def read_bounded(path: Path, limit: int = MAX_CONFIG_BYTES) -> ReadResult:
    """Read a regular file of at most `limit` bytes. Never raises OSError; never blocks on a FIFO or device."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ReadResult(None, "missing", f"{path} does not exist")
    except OSError as error:
        return ReadResult(None, "unreadable", f"{path}: {error.strerror}")
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return ReadResult(None, "not_a_file", f"{path} is not a regular file")
        if info.st_size > limit:
            return ReadResult(None, "too_large", f"{path} has {info.st_size} bytes, at most {limit} are read")
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            return ReadResult(None, "too_large", f"{path} has more than {limit} bytes")
        return ReadResult(data, inode=info.st_ino, unlinked=info.st_nlink == 0)
    except OSError as error:
        return ReadResult(None, "unreadable", f"{path}: {error.strerror}")
    finally:
        os.close(fd)


def mount_points(table: Path = Path("/proc/self/mountinfo")) -> frozenset[str]:
    """Every path that something is mounted on, a single file too. Empty where the kernel does not tell."""
    try:
        lines = table.read_bytes().splitlines()
    except OSError:
        return frozenset()
    fields = (line.split(b" ", 5)[4] for line in lines if line.count(b" ") > 5)
    return frozenset(os.fsdecode(_OCTAL.sub(lambda code: bytes([int(code[1], 8)]), field)) for field in fields)


def fsync_dir(path: Path) -> None:
    _fsync(path, os.O_DIRECTORY)


def sync_replaced(path: Path) -> None:
    """What `atomic_write` without `sync` left undone."""
    _fsync(path, os.O_NOFOLLOW)
    fsync_dir(path.parent)


def _fsync(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, data: bytes, mode: int = 0o644, *, sync: bool = True) -> None:
    """Replace `path` so that readers see the old or the new bytes, and the new ones survive a power cut.

    sync: False leaves the survival to a later `sync_replaced`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        failpoint("file_written")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        fsync_dir(path.parent)


def sweep_temporaries(folder: Path) -> int:
    """Remove what a kill within `atomic_write` left behind in or below `folder`, where nobody else may write now.

    Returns how many files that were.
    """
    count = 0
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.unlink()
                count += 1
    return count


def flip_link(link: Path, target: str) -> None:
    """Make `link` a symlink to `target` in one rename. Raises FileExistsError if a real directory stands there."""
    if link.exists() and not link.is_symlink():
        raise FileExistsError(errno.EEXIST, "a real file or directory stands where a link belongs", str(link))
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}.lnk")
    os.symlink(target, temporary)
    os.replace(temporary, link)
    fsync_dir(link.parent)


def remove_trees(folder: Path, names: Iterable[str]) -> None:
    """Remove these folders directly below `folder`; those that are not there are no matter. Links are not followed."""
    for name in names:
        if name not in ("", ".", "..") and "/" not in name:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder / name)


@contextlib.contextmanager
def exclusive_lock(path: Path, what: str) -> Iterator[None]:
    """Hold flock on `path` (made if needed). Raises LockHeldError that names the holder at once if it is taken.

    A lock dies with its process, so a stale file is no obstacle.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock(fd, fcntl.LOCK_EX, path, what)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def refuse_if_locked(path: Path, what: str) -> None:
    """Raise LockHeldError if somebody holds `exclusive_lock` on it now. Takes nothing, makes nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        _lock(fd, fcntl.LOCK_SH, path, what)
    finally:
        os.close(fd)


def _lock(fd: int, kind: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip() or "another process"
        raise LockHeldError(f"{what} is held by {holder} (lock file {path})") from None
