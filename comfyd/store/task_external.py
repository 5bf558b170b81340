"""What an outside worker may report, with or without its token."""

import sqlite3

from comfyd.model.task import TERMINAL, TRANSITIONS, ExternalUpdate, Outcome, TaskState
from comfyd.store.ledger import Transaction, storable
from comfyd.store.task_finish import Late, refuse, settle
from comfyd.store.task_queue import extend
from comfyd.store.task_rows import Clock, Term, digest, find, illegal, stale


def update(tx: Transaction, change: ExternalUpdate, term: Term, clock: Clock) -> Late | None:
    """FETCHED and PROCESSING renew the lease; a terminal status ends the task; PENDING hands it back.

    Handing back is charged only if the work had begun. Raises task_not_found, stale_lease, illegal_transition.
    """
    row = find(tx.db, change.task_id)
    if change.task_message is not None and not change.task_message.isascii():
        change = change.model_copy(update={"task_message": storable(change.task_message)})
    outcome = _outcome(row, change)
    if not _holds(row, change):
        return _not_held(tx, row, change, outcome, clock)
    _check(row, change.status)
    if change.status in {TaskState.FETCHED, TaskState.PROCESSING}:
        extend(tx, row, change.status, term, clock)
        _note(tx, row, change, clock)
    else:
        if change.started_at is not None:
            tx.db.execute("UPDATE task SET started_at = ? WHERE seq = ?", (change.started_at, row["seq"]))
        settle(tx, row, outcome, clock, change.finished_at)
    return None


def _outcome(row: sqlite3.Row, change: ExternalUpdate) -> Outcome:
    begun = row["started_at"] is not None or change.status is not TaskState.PENDING
    return Outcome(state=change.status, message=change.task_message, output=change.output_data, charged=begun)


def _holds(row: sqlite3.Row, change: ExternalUpdate) -> bool:
    if row["token"] is None:
        return False
    if change.lease_token is not None:
        return bool(row["token"] == change.lease_token)
    return bool(row["holder"] == change.caller)


def _not_held(tx: Transaction, row: sqlite3.Row, change: ExternalUpdate, outcome: Outcome, clock: Clock) -> Late | None:
    """A report told twice is answered twice; one by a displaced holder is kept as evidence."""
    token = change.lease_token
    same = row["done_digest"] == digest(outcome) and row["done_token"] is not None
    if same and (token == row["done_token"] if token is not None else row["holder"] == change.caller):
        return None
    if token is None and row["holder"] == change.caller and row["state"] in TERMINAL:
        raise illegal(change.task_id, row["state"], change.status)
    if change.status not in TERMINAL:
        raise stale(change.task_id)
    return refuse(tx, row, token, outcome, clock)


def _check(row: sqlite3.Row, to: TaskState) -> None:
    """A lease that ran out unnoticed is judged by what its holder believes to be."""
    have = TaskState(row["state"])
    if have is TaskState.PENDING:
        have = TaskState.FETCHED if row["started_at"] is None else TaskState.PROCESSING
    if to not in TRANSITIONS[have]:
        raise illegal(row["task_id"], have, to)


def _note(tx: Transaction, row: sqlite3.Row, change: ExternalUpdate, clock: Clock) -> None:
    started_at = change.started_at
    if started_at is None and change.status is TaskState.PROCESSING:
        started_at = clock.ms if row["started_at"] is None else row["started_at"]
    tx.db.execute(
        "UPDATE task SET message = coalesce(?, message), started_at = coalesce(?, started_at) WHERE seq = ?",
        (change.task_message, started_at, row["seq"]),
    )
