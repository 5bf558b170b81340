"""Rows of the shared task table: how they are locked, read, changed, and what a decision about one collects.

The decisions themselves are those of task_finish.py, task_external.py and task_queue.py; they work on a `Draft`.
Whatever depends on the time of a lease takes it from the server: `Clock.ms` is the server's, read under the lock.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from comfyd.model.task import Claim, Lease, Slot
from comfyd.store.ledger import Transaction, dump, from_json
from comfyd.store.postgres_schema import Connection
from comfyd.store.task_rows import NAMES, Clock, TaskRow, not_found, task_of

COLUMNS: Final = ", ".join(NAMES)
HELD: Final = ", ".join(name for name in NAMES if name != "params")
"""All but the workflow, which may have megabytes."""
SERVER_MS: Final = "comfyd_now_us() / 1000"
_ELSEWHERE: Final = frozenset({"lease_boot", "lease_mono"})
"""Columns of the embedded store only: here the server's clock is the only one."""
_LOCK: Final = f"SELECT {HELD}, {SERVER_MS} AS server_ms FROM comfyd_task WHERE task_id = $1 FOR UPDATE"


def storable_name(text: str) -> bool:
    """Whether the database could hold this text at all; nothing has a name that it cannot."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def row_of(record: Mapping[str, Any]) -> TaskRow:
    row = dict(record)
    if row["message"] is not None:
        row["message"] = from_json(row["message"])
    return row


def claim_of(row: TaskRow, slot: Slot | None) -> Claim:
    """prompt_id is "" for a task that an outside worker fetched."""
    lease = Lease(task_id=row["task_id"], token=row["token"], expires_at=row["lease_expires_at"])
    return Claim(task=task_of(row), lease=lease, prompt_id=row["prompt_id"] or "", slot=slot)


def clock_of(server_ms: int, wall: float) -> Clock:
    """wall: of this node, for its own event log and nothing else."""
    return Clock("", 0.0, server_ms, server_ms * 1000, wall)


async def lock_row(db: Connection, task_id: str, wall: float) -> tuple[TaskRow, Clock]:
    """The row without its workflow, ours until the transaction ends, and the server's time. Raises task_not_found."""
    record = await db.fetchrow(_LOCK, task_id) if storable_name(task_id) else None
    if record is None:
        raise not_found(task_id)
    row = row_of(record)
    return row, clock_of(row.pop("server_ms"), wall)


Notes = Sequence[tuple[str, str, Mapping[str, Any], float]]
"""(type, subject, data, wall) of events."""


def write_notes(tx: Transaction, notes: Notes) -> None:
    """Into the event log of this node."""
    for note in notes:
        tx.note(*note)


class Draft:
    """What decisions want changed: written in one go, told to this node's event log after the COMMIT."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, Mapping[str, Any], float]] = []
        self._rows: dict[int, dict[str, Any]] = {}

    def change(self, row: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        self._rows.setdefault(row["seq"], {}).update(columns)

    def note(self, type_: str, subject: str, data: Mapping[str, Any], wall: float) -> None:
        self.notes.append((type_, subject, data, wall))

    def count(self, environment: str, workflow: str, state: str, n: int) -> None:
        """The database counts by itself."""

    async def write(self, db: Connection) -> None:
        for seq, changed in self._rows.items():
            columns = {name: value for name, value in changed.items() if name not in _ELSEWHERE}
            if columns.get("message") is not None:
                columns["message"] = dump(columns["message"])
            await db.execute(_update(tuple(columns)), seq, *columns.values())
        self._rows.clear()


def created(task_id: str, workflow: str, wall: float) -> Draft:
    """A new task has only to be told."""
    draft = Draft()
    data = {"from": None, "to": "PENDING", "workflow": workflow, "instance": None, "message": None}
    draft.note("task", task_id, data, wall)
    return draft


@cache
def _update(names: tuple[str, ...]) -> str:
    return f"UPDATE comfyd_task SET {', '.join(f'{name} = ${n}' for n, name in enumerate(names, 2))} WHERE seq = $1"
