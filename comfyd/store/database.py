"""The database file: permissions, the check at boot, numbered schemas, one connection. Knows no statement of a store.

Everything here blocks: it runs on the writer thread.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import stat
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Final

from comfyd.errors import StoreError
from comfyd.failpoint import failpoint

SIDE_FILES: Final = ("-wal", "-shm")
_LITTLE_SPACE = 1024 * 1024
_BROKEN: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SPACE: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_UNUSABLE: Final = (
    _BROKEN
    | _BUSY
    | _SPACE
    | {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_INTERRUPT,
    }
)
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA wal_autocheckpoint = 8000",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -8000",
)


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 if the error did not come from SQLite itself."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_unusable(error: BaseException) -> bool:
    """The database itself failed (disk, lock, corruption), not the operation: the whole batch is lost."""
    return isinstance(error, sqlite3.Error) and primary_code(error) in _UNUSABLE


def is_doubtful(error: BaseException) -> bool:
    """After this the content is checked before the database is used again."""
    return isinstance(error, sqlite3.Error) and primary_code(error) in _BROKEN | {sqlite3.SQLITE_IOERR}


def store_error(error: BaseException, path: Path) -> StoreError:
    """The one translation of what SQLite or the disk says."""
    code = primary_code(error) if isinstance(error, sqlite3.Error) else 0
    if code == sqlite3.SQLITE_FULL or (code in _SPACE and _free(path) < _LITTLE_SPACE):
        return StoreError(
            "The disk that holds the database is full; free some space and try again.", code="storage_full"
        )
    if code in _BROKEN:
        return StoreError(
            f"The database is damaged ({error}); restart the daemon: it sets the file aside and starts a fresh one.",
            code="store_corrupt",
        )
    if code in _BUSY:
        return StoreError("Another process holds the lock on the database; close it and try again.")
    return StoreError(f"The database cannot be used now ({error}); nothing was stored, try again.")


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return _LITTLE_SPACE


def prepare(path: Path) -> Path | None:
    """Make folder (0700) and file (0600), check what is there.

    A damaged file is moved aside whole, with its log; its new place is returned, else None. Raises StoreError
    `store_corrupt` for a schema newer than ours (nothing is written) and `store_unavailable` if it cannot be opened.
    """
    try:
        _make_private(path)
        return _set_aside(path) if _damaged(path) else None
    except (OSError, sqlite3.Error) as error:
        raise store_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            _touch_private(path)


def _make_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.parent.stat().st_mode
    if mode & 0o077 and not mode & stat.S_ISVTX:  # a shared folder such as /tmp stays as it is
        with contextlib.suppress(PermissionError):
            path.parent.chmod(0o700)
    _touch_private(path)


def _touch_private(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) != 0o600:
            os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _damaged(path: Path) -> bool:
    """Look through a read-only connection: it never checkpoints, so the file stays as it was found."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if found > len(schemas()):
            raise StoreError(
                f"The database has schema {found}, this comfyd knows {len(schemas())}: install the newer comfyd again "
                f"or move {path.name} away. Nothing was changed.",
                code="store_corrupt",
                retryable=False,
            )
        return not sound(db)
    except sqlite3.DatabaseError as error:
        if primary_code(error) in _BROKEN:
            return True
        raise
    finally:
        db.close()


def sound(db: sqlite3.Connection) -> bool:
    """PRAGMA quick_check says ok."""
    try:
        return bool(db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.DatabaseError as error:
        if primary_code(error) in _BROKEN:
            return False
        raise


def _set_aside(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in ("", *SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """One connection in WAL mode with synchronous FULL, migrated to the newest schema. Raises sqlite3.Error."""
    db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, cached_statements=256)
    try:
        db.row_factory = sqlite3.Row
        for pragma in _PRAGMAS:
            db.execute(pragma)
        _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def schemas() -> list[str]:
    """The numbered schema files, in order; number n lifts user_version n - 1 to n."""
    folder = resources.files("comfyd.store") / "schema"
    files = sorted((f for f in folder.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", f.name)), key=lambda f: f.name)
    return [f.read_text(encoding="utf-8") for f in files]


def _migrate(db: sqlite3.Connection) -> None:
    have = int(db.execute("PRAGMA user_version").fetchone()[0])
    for number, script in enumerate(schemas()[have:], have + 1):
        try:
            db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        failpoint("migration_n")
