"""What every batch leaves behind besides its rows: events with gap-free numbers, and the counts of tasks by state.

Both are gathered in memory while operations run and written once, just before COMMIT. Runs on the writer thread.
"""

import json
import sqlite3
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from pydantic_core import PydanticSerializationError, from_json, to_json

from comfyd.model.task import Event, TaskState
from comfyd.store.insert import Insert
from comfyd.store.known import Known

__all__ = ["Changes", "Ledger", "Transaction", "dump", "from_json", "storable"]

_INSERT_EVENTS = Insert("event (seq, at, type, subject, data)", "(?, ?, ?, ?, ?)")
_QUEUED = "SELECT coalesce(sum(n), 0) FROM tally WHERE state = 'PENDING'"
_ADD_TALLY = Insert(
    "tally (environment, workflow_name, state, n)",
    "(?, ?, ?, ?)",
    "ON CONFLICT (environment, workflow_name, state) DO UPDATE SET n = n + excluded.n",
)


def dump(value: Any) -> str:
    """JSON text of plain data. Several times faster than the json module, which shows in every create.

    A lone surrogate (from a file name or a broken log) becomes `?`: no result is lost for it.
    """
    try:
        return to_json(value).decode()
    except (PydanticSerializationError, UnicodeEncodeError):
        return storable(json.dumps(value, ensure_ascii=False))


def storable(text: str) -> str:
    """Text that a database takes, whatever it came from."""
    return text.encode("utf-8", "replace").decode()


class Ledger:
    """Numbers of the event log: `last` is committed, `oldest` still kept. Keeps about `rows` events.

    known: of the tasks; valid within the transaction that is open too.
    """

    def __init__(self, rows: int) -> None:
        self.rows = max(1, rows)
        self.last = 0
        self.oldest = 1
        self.known = Known()

    def load(self, db: sqlite3.Connection) -> None:
        self.known.forget()
        first, last = db.execute("SELECT min(seq), max(seq) FROM event").fetchone()
        self.last = last or 0
        self.oldest = first or self.last + 1

    def trim(self, db: sqlite3.Connection, last: int) -> int:
        """Delete the oldest events beyond `rows`, in strides. Returns the oldest seq that is kept."""
        keep_from = last - self.rows + 1
        if keep_from - self.oldest < max(1, self.rows // 100):
            return self.oldest
        db.execute("DELETE FROM event WHERE seq < ?", (keep_from,))
        return keep_from


class Changes(Protocol):
    """What a decision about a task works on, whichever database holds the row."""

    def change(self, row: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """Write these columns of the task whose row this is."""
        ...

    def note(self, type_: str, subject: str, data: Mapping[str, Any], wall: float) -> None:
        """Add an event to this node's log."""
        ...

    def count(self, environment: str, workflow: str, state: str, n: int) -> None:
        """Change the number of tasks in `state` by n."""
        ...


@cache
def _update(names: tuple[str, ...]) -> str:
    return f"UPDATE task SET {', '.join(f'{name} = ?' for name in names)} WHERE seq = ?"


class Transaction:
    """What one operation works on: the connection, and what it wants written along with its rows."""

    def __init__(self, db: sqlite3.Connection, ledger: Ledger) -> None:
        self.db = db
        self.known = ledger.known
        self._ledger = ledger
        self._base = ledger.last
        self._events: list[tuple[int, float, str, str, str]] = []
        self._moves: list[tuple[str, str, str, int]] = []

    def change(self, row: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        self.db.execute(_update(tuple(columns)), (*columns.values(), row["seq"]))
        if "finished_at" in columns:
            self.known.moved((row["user_id"], row["priority"]), row["rank"])
        if columns.get("lease_mono") is not None:
            self.known.leased(columns["lease_mono"])

    def event(self, type_: str, subject: str, data: Mapping[str, Any], wall: float) -> Event:
        seq = self._base + len(self._events) + 1
        self._events.append((seq, wall, type_, subject, dump(data)))
        return Event(seq=seq, at=wall, type=type_, subject=subject, data=dict(data))

    def note(self, type_: str, subject: str, data: Mapping[str, Any], wall: float) -> None:
        """`event` for those that do not need the answer."""
        self.note_text(type_, subject, dump(data), wall)

    def note_text(self, type_: str, subject: str, data: str, wall: float) -> None:
        """`note` with data as JSON text."""
        self._events.append((self._base + len(self._events) + 1, wall, type_, subject, data))

    def count(self, environment: str, workflow: str, state: str, n: int) -> None:
        """Change the number of tasks in `state` by n."""
        self._moves.append((environment, workflow, state, n))
        if state == TaskState.PENDING and self.known.queued is not None:
            self.known.queued += n

    def queued(self) -> int:
        """How many tasks are PENDING, those of this transaction included."""
        if self.known.queued is None:
            (stored,) = self.db.execute(_QUEUED).fetchone()
            self.known.queued = stored + sum(n for *_, state, n in self._moves if state == TaskState.PENDING)
        return self.known.queued

    def changes(self) -> tuple[int, int, int]:
        """Differs after anything was changed."""
        return self.db.total_changes, *self.mark()

    def mark(self) -> tuple[int, int]:
        return len(self._events), len(self._moves)

    def back_to(self, mark: tuple[int, int]) -> None:
        """Forget what was gathered since `mark`: the operation was rolled back."""
        self.known.forget()
        del self._events[mark[0] :]
        del self._moves[mark[1] :]

    def flush(self) -> tuple[int, int]:
        """Write what was gathered. Returns (last, oldest) seq, to be set once COMMIT has succeeded."""
        last = self._base + len(self._events)
        _INSERT_EVENTS(self.db, self._events)
        sums: dict[tuple[str, str, str], int] = {}
        for environment, workflow, state, n in self._moves:
            key = (environment, workflow, state)
            sums[key] = sums.get(key, 0) + n
        _ADD_TALLY(self.db, [(*key, n) for key, n in sums.items() if n])
        return last, self._ledger.trim(self.db, last)
