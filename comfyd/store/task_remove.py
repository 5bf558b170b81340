"""Taking tasks away for good: results that were kept long enough, and what somebody deletes by hand."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from comfyd.errors import ComfydError
from comfyd.model.task import TERMINAL
from comfyd.store.ledger import Changes, Transaction
from comfyd.store.task_rows import Clock, TaskRow, find

_KEPT: Final = "state IN ('COMPLETED', 'CANCELLED')"
_OLDEST: Final = f"SELECT min(ended_at) FROM task INDEXED BY task_kept WHERE {_KEPT}"
_EXPIRED: Final = (
    f"SELECT task_id FROM task INDEXED BY task_kept WHERE {_KEPT} AND ended_at <= ? ORDER BY ended_at LIMIT ?"
)


def expired(db: sqlite3.Connection, until_ms: int, limit: int) -> tuple[str, ...]:
    return tuple(row[0] for row in db.execute(_EXPIRED, (until_ms, limit)))


def oldest(db: sqlite3.Connection) -> int | None:
    found = db.execute(_OLDEST).fetchone()[0]
    return None if found is None else int(found)


def remove(tx: Transaction, task_ids: Sequence[str]) -> int:
    """Of these, the ones that are (still) a result or cancelled."""
    mine = f"{_KEPT} AND task_id IN ({', '.join('?' * len(task_ids))})"
    groups = f"SELECT environment, workflow_name, state, count(*) FROM task WHERE {mine} GROUP BY 1, 2, 3"
    for environment, workflow, state, n in tx.db.execute(groups, task_ids).fetchall():
        tx.count(environment, workflow, state, -n)
    tx.known.forget()
    return tx.db.execute(f"DELETE FROM task WHERE {mine}", task_ids).rowcount


def delete(tx: Transaction, task_id: str, clock: Clock) -> None:
    row = find(tx.db, task_id)
    check_ended(row)
    tell(tx, row, clock.wall)
    tx.count(row["environment"], row["workflow_name"], row["state"], -1)
    tx.known.forget()
    tx.db.execute("DELETE FROM task WHERE seq = ?", (row["seq"],))


def check_ended(row: TaskRow) -> None:
    if row["state"] not in TERMINAL:
        raise ComfydError(
            f"A task that is {row['state']} cannot be deleted; cancel it first.",
            code="illegal_transition",
            details={"task_id": row["task_id"], "from": row["state"]},
        )


def tell(tx: Changes, row: TaskRow, wall: float) -> None:
    data = {"from": row["state"], "to": None, "workflow": row["workflow_name"], "instance": row["instance"]}
    tx.note("task", row["task_id"], {**data, "message": "deleted by hand"}, wall)
