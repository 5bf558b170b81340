"""Statements by which a task leaves its holder: finished, put back, cancelled, or retried by hand."""

import sqlite3
from typing import Final

from comfyd.model.task import TERMINAL, Outcome, TaskState
from comfyd.store.ledger import Transaction, dump, storable
from comfyd.store.task_rows import Clock, digest, find, illegal, moved, stale

MAX_INFRA_LOSSES: Final = 10
"""How often a task may come back uncharged; the next loss fails it."""

_END = """
UPDATE task SET state = ?, finished_at = ?, message = ?, output = ?, attempts = ?, infra_losses = ?,
    lost_token = ?, token = NULL, lease_boot = NULL, lease_mono = NULL, lease_expires_at = NULL,
    done_token = ?, done_digest = ?
WHERE seq = ?
"""
_RELEASE = """
UPDATE task SET state = 'PENDING', message = ?, attempts = ?, infra_losses = ?, token = ?, lease_boot = NULL,
    lease_mono = NULL, lease_expires_at = NULL, done_token = ?, done_digest = ?
WHERE seq = ?
"""
_RETRY = """
UPDATE task SET state = 'PENDING', attempts = 0, infra_losses = 0, cancel_requested = 0, started_at = NULL,
    finished_at = NULL, message = NULL, output = NULL, prompt_id = NULL, holder = NULL, lost_token = NULL,
    done_token = NULL, done_digest = NULL
WHERE seq = ?
"""


class Late:
    """A result that came too late: kept as an event, refused as a result."""


def finish(tx: Transaction, task_id: str, token: str, outcome: Outcome, clock: Clock) -> Late | None:
    """Apply `outcome` if `token` is the current one; do nothing if this very report was applied before."""
    outcome = storable_outcome(outcome)
    row = find(tx.db, task_id)
    if outcome.state not in TERMINAL and outcome.state is not TaskState.PENDING:
        raise illegal(task_id, row["state"], outcome.state)
    if row["token"] == token:
        settle(tx, row, outcome, clock)
        return None
    if row["done_token"] == token and row["done_digest"] == digest(outcome):
        return None
    return refuse(tx, row, token, outcome, clock)


def storable_outcome(outcome: Outcome) -> Outcome:
    if outcome.message is None or outcome.message.isascii():
        return outcome
    return outcome.model_copy(update={"message": storable(outcome.message)})


def refuse(tx: Transaction, row: sqlite3.Row, token: str | None, outcome: Outcome, clock: Clock) -> Late:
    """Keep the result of the lease that was displaced last, once; raise stale_lease for any other."""
    if token is None or row["lost_token"] != token:
        raise stale(row["task_id"])
    tx.db.execute("UPDATE task SET lost_token = NULL WHERE seq = ?", (row["seq"],))
    data = {"state": outcome.state.value, "message": outcome.message, "output": outcome.output}
    tx.note("task_late", row["task_id"], data, clock.wall)
    return Late()


def settle(tx: Transaction, row: sqlite3.Row, outcome: Outcome, clock: Clock, finished_at: int | None = None) -> None:
    """The holder of the current lease ends its attempt."""
    if outcome.state is TaskState.PENDING:
        put_back(tx, row, outcome, clock)
    else:
        _end(tx, row, outcome, clock, finished_at=finished_at)


def put_back(tx: Transaction, row: sqlite3.Row, outcome: Outcome, clock: Clock, keep_token: bool = False) -> None:
    """Back to the queue, or to the end that is due: cancelled if so asked, failed if a budget is used up.

    keep_token: the lease ran out; its holder may still come back.
    """
    attempts, losses = row["attempts"], row["infra_losses"]
    if not outcome.charged:
        attempts, losses = max(0, attempts - 1), losses + 1
    ending = _ending(row, outcome, attempts, losses)
    if ending is not None:
        _end(tx, row, outcome, clock, ending, (attempts, losses), lost=keep_token)
        return
    token, done = (row["token"], (row["done_token"], row["done_digest"])) if keep_token else (None, _done(row, outcome))
    tx.db.execute(_RELEASE, (outcome.message, attempts, losses, token, *done, row["seq"]))
    if row["state"] != TaskState.PENDING:
        moved(tx, row, TaskState.PENDING, outcome.message, clock.wall)


def _ending(row: sqlite3.Row, outcome: Outcome, attempts: int, losses: int) -> tuple[TaskState, str | None] | None:
    if row["cancel_requested"]:
        return TaskState.CANCELLED, outcome.message
    reason = f" Last: {outcome.message}" if outcome.message else ""
    if outcome.charged and attempts >= row["max_attempts"]:
        return TaskState.FAILED, f"Gave up after attempt {attempts} of {row['max_attempts']}.{reason}"
    if losses > MAX_INFRA_LOSSES:
        return TaskState.FAILED, f"Gave up after losing its instance {losses} times.{reason}"
    return None


def _done(row: sqlite3.Row, outcome: Outcome) -> tuple[str | None, str]:
    return row["token"], digest(outcome)


def _end(
    tx: Transaction,
    row: sqlite3.Row,
    outcome: Outcome,
    clock: Clock,
    ending: tuple[TaskState, str | None] | None = None,
    budgets: tuple[int, int] | None = None,
    *,
    finished_at: int | None = None,
    lost: bool = False,
) -> None:
    """Terminal. lost: no one reported this end, so the last token is only good for late evidence."""
    state, message = ending or (outcome.state, outcome.message)
    attempts, losses = budgets or (row["attempts"], row["infra_losses"])
    output = None if outcome.output is None else dump(outcome.output)
    kept = (row["token"] or row["lost_token"], row["done_token"], row["done_digest"])
    tokens = kept if lost else (row["lost_token"], *_done(row, outcome))
    tx.db.execute(
        _END,
        (
            state,
            clock.ms if finished_at is None else finished_at,
            message,
            output,
            attempts,
            losses,
            *tokens,
            row["seq"],
        ),
    )
    moved(tx, row, state, message, clock.wall)


def cancel(tx: Transaction, task_id: str, clock: Clock) -> None:
    row = find(tx.db, task_id)
    state = TaskState(row["state"])
    if state in TERMINAL:
        raise illegal(task_id, state, TaskState.CANCELLED)
    if state is TaskState.PROCESSING:
        if not row["cancel_requested"]:
            tx.db.execute("UPDATE task SET cancel_requested = 1 WHERE seq = ?", (row["seq"],))
            moved(tx, row, state, "cancel requested", clock.wall)
        return
    _end(tx, row, Outcome(state=TaskState.CANCELLED, message="Cancelled on request."), clock, lost=True)


def retry(tx: Transaction, task_id: str, clock: Clock) -> None:
    row = find(tx.db, task_id)
    if row["state"] not in {TaskState.FAILED, TaskState.CANCELLED}:
        raise illegal(task_id, row["state"], TaskState.PENDING)
    tx.db.execute(_RETRY, (row["seq"],))
    moved(tx, row, TaskState.PENDING, "retried by hand", clock.wall)
