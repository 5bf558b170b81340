"""The append-only record of every process we started: JSON lines, one fdatasync per batch of starts.

A torn last line is ignored: its child is still at the barrier and ends by itself. Blocking: call it off the loop.
"""

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from comfyd.failpoint import failpoint
from comfyd.host.files import atomic_write

COMPACT_AFTER = 2000


class Journal:
    """Operations: `start` (identity and what adoption needs), `ready`, `unready`, `end`, keyed by uuid."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._live: dict[str, dict[str, Any]] = {}
        self._lines = 0
        self._fd = -1

    def open(self) -> list[dict[str, Any]]:
        """Read, compact to the records without an end, open for appending. Returns those records."""
        with self._lock:
            self._live = {record["uuid"]: record for record in _read(self._path)}
            self._compact()
            return [dict(record) for record in self._live.values()]

    def started(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append `start` records and put them on disk with one fdatasync. Raises OSError: then none is recorded."""
        with self._lock:
            given = {str(record["uuid"]): dict(record) for record in records}
            self._append(*({"op": "start", **record} for record in given.values()))
            os.fdatasync(self._fd)
            self._live.update(given)
        failpoint("record_written")

    def marked(self, uuid: str, ready: bool) -> None:
        """Remember the readiness of a run, so that its next daemon starts from it. Not synced: a hint."""
        with self._lock:
            if uuid in self._live:
                self._live[uuid]["ready"] = ready
                with contextlib.suppress(OSError):
                    self._append({"op": "ready" if ready else "unready", "uuid": uuid})

    def ended(self, *uuids: str) -> None:
        """Forget runs whose end was seen. Where that cannot be written, the next daemon finds them ended."""
        with self._lock:
            known = [uuid for uuid in uuids if self._live.pop(uuid, None) is not None]
            if not known:
                return
            with contextlib.suppress(OSError):
                self._append(*({"op": "end", "uuid": uuid} for uuid in known))
            if self._lines > COMPACT_AFTER + 2 * len(self._live):
                with contextlib.suppress(OSError):
                    self._compact()
        failpoint("record_cleared")

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, *entries: Mapping[str, Any]) -> None:
        """All of them or none: half a line would spoil the one that follows it."""
        data = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        self._lines += len(entries)

    def _compact(self) -> None:
        """Write anew what lives. Raises OSError: then the old file stays in use."""
        lines = [json.dumps({"op": "start", **r}, separators=(",", ":")) + "\n" for r in self._live.values()]
        atomic_write(self._path, "".join(lines).encode(), 0o600)
        before, self._fd = self._fd, os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._lines = len(lines)
        if before >= 0:
            os.close(before)


def recorded(path: Path) -> list[dict[str, Any]]:
    """The records without an end, without touching the file: for those who only look."""
    return _read(path)


def _read(path: Path) -> list[dict[str, Any]]:
    """Records without an end, oldest first. Unreadable lines are skipped (only the last one can be torn)."""
    live: dict[str, dict[str, Any]] = {}
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    for line in raw.splitlines():
        try:
            entry = json.loads(line)
            op, uuid = entry.pop("op"), entry["uuid"]
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        if op == "start":
            live[uuid] = entry
        elif op == "end":
            live.pop(uuid, None)
        elif uuid in live:
            live[uuid]["ready"] = op == "ready"
    return list(live.values())
