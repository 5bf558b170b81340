"""Statements that lease tasks out and take expired leases back. Each is one operation."""

import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfyd.model.task import Limits, Outcome, Slot, TaskState
from comfyd.store.ledger import Changes, Transaction
from comfyd.store.task_due import WAITING, fall_due
from comfyd.store.task_finish import put_back
from comfyd.store.task_limits import Place, Room, places, queued_workflows, room
from comfyd.store.task_pause import paused
from comfyd.store.task_read import next_lapse
from comfyd.store.task_rows import ALL, Clock, TaskRow, Term, change, find, moved, named, stale

_MAY_RUN = f"rank < {WAITING} AND (deadline IS NULL OR deadline > ?)"
# INDEXED BY: without statistics the planner may prefer the index on state, which grows with the queue.
_NEXT = (
    f"SELECT {ALL} FROM task INDEXED BY task_queue WHERE state = 'PENDING' AND environment = ? AND {_MAY_RUN} "
    "ORDER BY rank, seq LIMIT 1"
)
_EXPIRED = f"SELECT {ALL} FROM task INDEXED BY task_held WHERE token IS NOT NULL AND lease_mono <= ?"
_OF_NODE = (
    f"SELECT {ALL} FROM task INDEXED BY task_held WHERE token IS NOT NULL AND node_id = ? "
    "AND prompt_id IS NOT NULL AND state IN ('PROCESSING', 'PENDING') ORDER BY rank, seq"
)
_PLACE = ("started_at", "node_id", "slot", "generation", "instance", "target_port", "prompt_id", "holder")
_BEST_OF_ENVIRONMENT = (
    "SELECT rank, seq, environment FROM task INDEXED BY task_queue "
    f"WHERE state = 'PENDING' AND environment = ? AND {_MAY_RUN} ORDER BY rank, seq LIMIT 1"
)
_BEST_OF_WORKFLOW = (
    "SELECT rank, seq, environment FROM task INDEXED BY task_workflow_queue "
    f"WHERE state = 'PENDING' AND workflow_name = ? AND environment = ? AND {_MAY_RUN} ORDER BY rank, seq LIMIT 1"
)
_NEXT_ENVIRONMENT = (
    "SELECT min(environment) FROM task INDEXED BY task_queue WHERE state = 'PENDING' AND environment > ?"
)


def settle_due(tx: Transaction, clock: Clock) -> None:
    """Everything that happens by itself once its time has come."""
    take_back(tx, clock)
    fall_due(tx, clock)


def take_back(tx: Transaction, clock: Clock) -> None:
    """Return every task whose lease ran out to the queue. Its token stays good until someone else gets the task."""
    if clock.mono < tx.known.expiry_mono:
        return
    expired = tx.db.execute(_EXPIRED, (clock.mono,)).fetchall()
    for row in map(named, expired):
        lapse(tx, row, clock)
    left = next_lapse(tx.db)
    tx.known.expiry_mono = math.inf if left is None else left


def lapse(tx: Changes, row: TaskRow, clock: Clock) -> None:
    """The lease of `row` ran out."""
    outcome = Outcome(state=TaskState.PENDING, message=f"The lease ran out in attempt {row['attempts']}.")
    put_back(tx, row, outcome, clock, keep_token=True)


def claim(
    tx: Transaction, wanted: Sequence[tuple[Slot, Term, str]], node_id: str, clock: Clock, limits: Limits
) -> list[tuple[TaskRow, Term, Slot]]:
    """Fill each slot with the best queued task of its environment that the limits allow."""
    settle_due(tx, clock)
    granted: list[tuple[TaskRow, Term, Slot]] = []
    stopped = paused(tx)
    if "" in stopped or not wanted:
        return granted
    left = room(tx.db, limits)
    for slot, term, prompt_id in wanted:
        if slot.environment in stopped:
            continue
        found = _next(tx.db, left, slot.environment, clock.ms)
        if found is not None:
            place = {
                "started_at": clock.ms,
                "node_id": node_id,
                "slot": slot.key,
                "generation": slot.generation,
                "instance": slot.instance,
                "target_port": slot.port,
                "prompt_id": prompt_id,
                "holder": None,
            }
            left.take(found["environment"], found["workflow_name"])
            granted.append((_grant(tx, found, TaskState.PROCESSING, place, term, clock), term, slot))
    return granted


def _next(db: sqlite3.Connection, left: Room, environment: str, ms: int) -> TaskRow | None:
    """The best of what is queued there and allowed."""
    if not left.full(environment):
        row = db.execute(_NEXT, (environment, ms)).fetchone() if left.left(environment) > 0 else None
        return None if row is None else named(row)
    return _row_of(db, _best(db, places(left, [environment], None, queued_workflows(db)), ms))


def _row_of(db: sqlite3.Connection, found: Sequence[tuple[int, int, str]]) -> TaskRow | None:
    """The first in the queue of these."""
    if not found:
        return None
    return named(db.execute(f"SELECT {ALL} FROM task WHERE seq = ?", (min(found)[1],)).fetchone())


def _grant(tx: Transaction, row: TaskRow, to: TaskState, place: Mapping[str, Any], term: Term, clock: Clock) -> TaskRow:
    """place: where it will run, all of it: nothing of its last attempt is to be left."""
    now = change(
        tx,
        row,
        state=to.value,
        attempts=row["attempts"] + 1,
        message=None,
        lost_token=row["token"],
        token=term.token,
        lease_boot=term.boot,
        lease_mono=term.mono,
        lease_expires_at=term.at,
        **place,
    )
    moved(tx, {**now, "state": "PENDING"}, to, None, clock.wall)
    return now


def fetch(
    tx: Transaction,
    caller: str,
    asked: tuple[Sequence[str] | None, Sequence[str] | None],
    targets: Mapping[str, int],
    term: Term,
    clock: Clock,
    limits: Limits,
) -> TaskRow | None:
    """asked: (workflows, environments), None = any."""
    settle_due(tx, clock)
    workflows, environments = asked
    stopped = paused(tx)
    names = _queued_environments(tx.db) if environments is None else environments
    open_to = [] if "" in stopped else [name for name in names if name not in stopped]
    left = room(tx.db, limits)
    some_full = workflows is None and any(left.full(name) for name in open_to)
    queued = queued_workflows(tx.db) if some_full else []
    row = _row_of(tx.db, _best(tx.db, places(left, open_to, workflows, queued), clock.ms))
    if row is None:
        return None
    place = {**dict.fromkeys(_PLACE), "holder": caller, "target_port": targets.get(row["environment"])}
    return _grant(tx, row, TaskState.FETCHED, place, term, clock)


def _best(db: sqlite3.Connection, allowed: Sequence[Place], ms: int) -> list[tuple[int, int, str]]:
    """(rank, number, environment) of the next task of each place."""
    rows = [
        db.execute(_BEST_OF_ENVIRONMENT, (environment, ms)).fetchone()
        if workflow is None
        else db.execute(_BEST_OF_WORKFLOW, (workflow, environment, ms)).fetchone()
        for environment, workflow in allowed
    ]
    return [tuple(row) for row in rows if row is not None]


def _queued_environments(db: sqlite3.Connection) -> list[str]:
    """By hops over the index: as many steps as there are environments, however long the queue."""
    names: list[str] = []
    while True:
        (name,) = db.execute(_NEXT_ENVIRONMENT, (names[-1] if names else "",)).fetchone()
        if name is None:
            return names
        names.append(name)


def renew(tx: Transaction, task_id: str, token: str, term: Term, clock: Clock) -> None:
    """Extend the lease, also one that ran out as long as no one else got the task."""
    renew_row(tx, find(tx.db, task_id), token, term, clock)


def renew_row(tx: Changes, row: TaskRow, token: str, term: Term, clock: Clock) -> None:
    if row["token"] != token:
        raise stale(row["task_id"])
    extend(tx, row, _state_of_holder(row), term, clock)


def _state_of_holder(row: TaskRow) -> TaskState:
    if row["state"] != TaskState.PENDING:
        return TaskState(row["state"])
    return TaskState.PROCESSING if row["started_at"] is not None else TaskState.FETCHED


def extend(tx: Changes, row: TaskRow, to: TaskState, term: Term, clock: Clock, **columns: Any) -> TaskRow:
    """Move the expiry of a lease that is still the current one; its token stays, unless `columns` says so."""
    if row["state"] != to:
        moved(tx, row, to, None, clock.wall)
    return change(
        tx,
        row,
        state=to.value,
        lease_boot=term.boot,
        lease_mono=term.mono,
        lease_expires_at=term.at,
        **columns,
    )


def recover(tx: Transaction, node_id: str, terms: Callable[[], Term], clock: Clock) -> list[tuple[TaskRow, Term]]:
    """Re-token this node's prompts, also those whose lease ran out while the daemon was away."""
    found = []
    for row in map(named, tx.db.execute(_OF_NODE, (node_id,)).fetchall()):
        term = terms()
        found.append((retake(tx, row, term, clock), term))
    return found


def retake(tx: Changes, row: TaskRow, term: Term, clock: Clock) -> TaskRow:
    """The node that held the task goes on with it under a new token."""
    return extend(tx, row, TaskState.PROCESSING, term, clock, token=term.token, lost_token=None)
