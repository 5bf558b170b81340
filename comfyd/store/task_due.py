"""What falls due by the clock on the wall: queued tasks that may run from now on, and those whose deadline has passed.

A task that is not to run yet waits behind all others (`WAITING`), so that no claim has to step over it. Once it is due
it gets the rank of a task that arrives at that instant.
"""

import sqlite3
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from comfyd.model.task import NewTask, Outcome, TaskState
from comfyd.store.ledger import Changes, Transaction
from comfyd.store.task_finish import end_unreported
from comfyd.store.task_rows import BARE, Clock, TaskRow, named

Row = TypeVar("Row", bound=Mapping[str, Any])
Lane = TypeVar("Lane", bound=Hashable)
WAITING: Final = 1 << 60
"""Rank of a task that waits, without what its priority costs. Ranks are microseconds since 1970: far below."""
MANY: Final = 500
"""So many are dealt with in one go: the rest has its turn in the next, which follows soon."""

_DUE: Final = (
    "SELECT (SELECT min(deadline) FROM task INDEXED BY task_deadline "
    "WHERE state = 'PENDING' AND deadline IS NOT NULL), "
    f"(SELECT min(run_after) FROM task INDEXED BY task_waiting WHERE state = 'PENDING' AND rank >= {WAITING})"
)
_LATE: Final = (
    f"SELECT {BARE} FROM task INDEXED BY task_deadline "
    f"WHERE state = 'PENDING' AND deadline IS NOT NULL AND deadline <= ? ORDER BY deadline LIMIT {MANY}"
)
_RIPE: Final = (
    f"SELECT {BARE} FROM task INDEXED BY task_waiting "
    f"WHERE state = 'PENDING' AND rank >= {WAITING} AND run_after <= ? ORDER BY run_after, seq LIMIT {MANY}"
)
# INDEXED BY: without statistics the planner may prefer the index on state, which grows with the queue.
_TOP: Final = (
    "SELECT coalesce(max(rank), 0) FROM task INDEXED BY task_lane "
    f"WHERE finished_at IS NULL AND user_id IS ? AND priority = ? AND rank < {WAITING}"
)


def waits(new: NewTask, clock_ms: int) -> bool:
    return new.run_after is not None and new.run_after > clock_ms


def top(tx: Transaction, lane: tuple[str | None, str]) -> int:
    """Highest rank of the lane's unfinished tasks that may run, 0 if it has none."""
    known = tx.known.top(lane)
    return known if known is not None else int(tx.db.execute(_TOP, lane).fetchone()[0])


def next_due_ms(db: sqlite3.Connection) -> int | None:
    """Wall ms at which the next task may run or misses its deadline."""
    found = [at for at in db.execute(_DUE).fetchone() if at is not None]
    return min(found, default=None)


def fall_due(tx: Transaction, clock: Clock) -> None:
    due = next_due_ms(tx.db)
    if due is None or due > clock.ms:
        return
    for row in map(named, tx.db.execute(_LATE, (clock.ms,)).fetchall()):
        miss(tx, row, clock)
    ripe = [named(row) for row in tx.db.execute(_RIPE, (clock.ms,)).fetchall()]
    lanes = {(row["user_id"], row["priority"]) for row in ripe}
    tops = {lane: top(tx, lane) for lane in lanes}
    for row, rank in ranked(ripe, tops, lambda row: (row["user_id"], row["priority"])):
        tx.change(row, {"rank": rank})
    for lane, rank in tops.items():
        tx.known.put_top(lane, rank)


def miss(tx: Changes, row: TaskRow, clock: Clock) -> None:
    """The deadline of a queued task has passed."""
    at = datetime.fromtimestamp(row["deadline"] / 1000, UTC).isoformat(timespec="milliseconds")
    begun = f" after {row['attempts']} attempts" if row["attempts"] else ""
    message = f"Its deadline {at.replace('+00:00', 'Z')} passed while it waited in the queue{begun}."
    end_unreported(tx, row, Outcome(state=TaskState.FAILED, message=message), clock)


def ranked(rows: Iterable[Row], tops: dict[Lane, int], lane_of: Callable[[Row], Lane]) -> list[tuple[Row, int]]:
    """Each of `rows` (by instant) with its rank as an arrival at that instant; `tops` moves along."""
    found = []
    for row in rows:
        lane = lane_of(row)
        tops[lane] = max(row["run_after"] * 1000, tops[lane]) + row["rank"] - WAITING
        found.append((row, tops[lane]))
    return found
