"""Questions to the task table that change nothing, and clear(). Counts come from the tally, never from a scan."""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

from comfyd.errors import ComfydError
from comfyd.model.task import TERMINAL, Task, TaskFilter, TaskPage, TaskState, TaskStats
from comfyd.store.ledger import Transaction
from comfyd.store.task_rows import SHOWN, TaskRow, named, not_found, task_of

_LEASED = "FROM task INDEXED BY task_held WHERE token IS NOT NULL AND lease_mono IS NOT NULL"
FEW = 10_000
"""So many queued tasks are sorted in milliseconds; of more, enough are among the newest of all tasks."""
PAGE_BYTES: Final = 8 * 1024 * 1024
"""A page that holds so much of workflows and results ends, whatever number of tasks was asked for."""
_CLEARED: Final = "state NOT IN ('FETCHED', 'PROCESSING')"

_COUNT_CLEARED: Final = (
    f"SELECT environment, workflow_name, state, count(*) FROM task WHERE {_CLEARED} "
    "GROUP BY environment, workflow_name, state"
)


def one(db: sqlite3.Connection, task_id: str) -> Task:
    row = db.execute(f"SELECT {SHOWN} FROM task WHERE task_id = ?", (task_id,)).fetchone()
    if row is None:
        raise not_found(task_id)
    return task_of(named(row))


def by_seq(db: sqlite3.Connection, seq: int) -> Task:
    return task_of(named(db.execute(f"SELECT {SHOWN} FROM task WHERE seq = ?", (seq,)).fetchone()))


def page(db: sqlite3.Connection, wanted: TaskFilter) -> TaskPage:
    """Newest first, at least one if there is one. The cursor is the number of the last task shown."""
    queued = _count(db, "state = 'PENDING'", ())
    source, terms, values = _source(wanted, queued)
    if wanted.workflow_name is not None:
        terms.append("workflow_name = ?")
        values.append(wanted.workflow_name)
    if wanted.cursor is not None:
        terms.append("seq < ?")
        values.append(seq_of(wanted.cursor))
    where = f"WHERE {' AND '.join(terms)}" if terms else ""
    text = (
        f"SELECT {SHOWN} FROM task WHERE seq IN (SELECT seq FROM task {source} {where} ORDER BY seq DESC LIMIT ?) "
        "ORDER BY seq DESC"
    )
    with closing(db.execute(text, (*values, wanted.limit + 1))) as rows:  # read one by one: each may have megabytes
        shown, more = _fitting(map(named, rows), wanted.limit)
    return TaskPage(
        tasks=tuple(task_of(row) for row in shown),
        next_cursor=str(shown[-1]["seq"]) if more else None,
        queue_length=queued,
    )


def _fitting(rows: Iterable[TaskRow], limit: int) -> tuple[list[TaskRow], bool]:
    """The first rows that make a page, and whether others follow."""
    shown: list[TaskRow] = []
    size = 0
    for row in rows:
        size += _bytes(row["params"]) + _bytes(row["output"])
        if len(shown) == limit or (shown and size > PAGE_BYTES):
            return shown, True
        shown.append(row)
    return shown, False


def _bytes(text: Any) -> int:
    return 0 if text is None else len(text if text.isascii() else text.encode())


def _source(wanted: TaskFilter, queued: int) -> tuple[str, list[str], list[str | int]]:
    """Where to look for tasks of a state: no index lists those that still change, for each would slow every claim."""
    by_workflow = wanted.workflow_name is not None
    if wanted.status is None:
        return "", [], []
    if wanted.status in TERMINAL:
        return "", ["finished_at IS NOT NULL", "state = ?"], [wanted.status]
    if wanted.status is not TaskState.PENDING:
        return "INDEXED BY task_held", ["token IS NOT NULL", "state = ?"], [wanted.status]
    if queued <= FEW:
        return f"INDEXED BY {'task_workflow_queue' if by_workflow else 'task_queue'}", ["state = 'PENDING'"], []
    return "INDEXED BY task_workflow" if by_workflow else "NOT INDEXED", ["state = 'PENDING'"], []


def seq_of(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise ComfydError("The cursor is not one that a list answer gave; start again without it.", code="bad_request")
    return int(cursor)


def _count(db: sqlite3.Connection, where: str, values: Sequence[str]) -> int:
    return int(db.execute(f"SELECT coalesce(sum(n), 0) FROM tally WHERE {where}", values).fetchone()[0])


def pending(db: sqlite3.Connection, environments: Sequence[str]) -> int:
    marks = ", ".join("?" * len(environments))
    return _count(db, f"state = 'PENDING' AND environment IN ({marks})", tuple(environments))


def stats(db: sqlite3.Connection) -> TaskStats:
    states: dict[str, int] = dict.fromkeys((state.value.lower() for state in TaskState), 0)
    workflows: dict[str, int] = {}
    for workflow, state, n in db.execute("SELECT workflow_name, state, n FROM tally WHERE n <> 0 ORDER BY 1, 2"):
        states[state.lower()] += n
        workflows[workflow] = workflows.get(workflow, 0) + n
    return TaskStats(total=sum(states.values()), workflows=workflows, **states)


def load(db: sqlite3.Connection) -> Mapping[int, int]:
    return {
        port: n
        for port, n in db.execute(f"SELECT target_port, count(*) {_LEASED} GROUP BY target_port")
        if port is not None
    }


def next_lapse(db: sqlite3.Connection) -> float | None:
    """Boot-time seconds at which the next lease runs out."""
    row = db.execute(f"SELECT min(lease_mono) {_LEASED}").fetchone()
    return None if row[0] is None else float(row[0])


def clear(tx: Transaction) -> int:
    tx.known.forget()
    for environment, workflow, state, n in tx.db.execute(_COUNT_CLEARED).fetchall():
        tx.count(environment, workflow, state, -n)
    return tx.db.execute(f"DELETE FROM task WHERE {_CLEARED}").rowcount


def forget_other_boots(tx: Transaction, boot: str) -> None:
    """Readings of another boot's clock mean nothing now: those leases have run out."""
    tx.db.execute(
        "UPDATE task INDEXED BY task_held SET lease_mono = 0, lease_boot = ? "
        "WHERE token IS NOT NULL AND lease_mono IS NOT NULL AND lease_boot <> ?",
        (boot, boot),
    )
