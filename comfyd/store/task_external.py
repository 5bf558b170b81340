"""What an outside worker may report, with or without its token."""

from typing import Any

from comfyd.model.task import TERMINAL, TRANSITIONS, ExternalUpdate, Outcome, TaskState
from comfyd.store.ledger import Changes, Transaction, storable
from comfyd.store.task_finish import Late, refuse, settle
from comfyd.store.task_queue import extend
from comfyd.store.task_rows import Clock, TaskRow, Term, change, digest, find, illegal, stale


def update(tx: Transaction, report: ExternalUpdate, term: Term, clock: Clock) -> TaskRow | Late:
    """FETCHED and PROCESSING renew the lease; a terminal status ends the task; PENDING hands it back.

    Handing back is charged only if the work had begun. Returns the row as it is now.
    Raises task_not_found, stale_lease, illegal_transition.
    """
    return update_row(tx, find(tx.db, report.task_id), report, term, clock)


def update_row(tx: Changes, row: TaskRow, report: ExternalUpdate, term: Term, clock: Clock) -> TaskRow | Late:
    """`update` for a row that is at hand and that nobody else can change now."""
    if report.task_message is not None and not report.task_message.isascii():
        report = report.model_copy(update={"task_message": storable(report.task_message)})
    outcome = _outcome(row, report)
    if not _holds(row, report):
        return _not_held(tx, row, report, outcome, clock)
    _check(row, report.status)
    if report.status in {TaskState.FETCHED, TaskState.PROCESSING}:
        return extend(tx, row, report.status, term, clock, **_noted(row, report, clock))
    if report.started_at is not None:
        row = change(tx, row, started_at=report.started_at)
    return settle(tx, row, outcome, clock, report.finished_at)


def _outcome(row: TaskRow, report: ExternalUpdate) -> Outcome:
    begun = row["started_at"] is not None or report.status is not TaskState.PENDING
    return Outcome(state=report.status, message=report.task_message, output=report.output_data, charged=begun)


def _holds(row: TaskRow, report: ExternalUpdate) -> bool:
    if row["token"] is None:
        return False
    if report.lease_token is not None:
        return bool(row["token"] == report.lease_token)
    return bool(row["holder"] == report.caller)


def _not_held(tx: Changes, row: TaskRow, report: ExternalUpdate, outcome: Outcome, clock: Clock) -> TaskRow | Late:
    """A report told twice is answered twice; one by a displaced holder is kept as evidence."""
    token = report.lease_token
    same = row["done_digest"] == digest(outcome) and row["done_token"] is not None
    if same and (token == row["done_token"] if token is not None else row["holder"] == report.caller):
        return row
    if token is None and row["holder"] == report.caller and row["state"] in TERMINAL:
        raise illegal(report.task_id, row["state"], report.status)
    if report.status not in TERMINAL:
        raise stale(report.task_id)
    return refuse(tx, row, token, outcome, clock)


def _check(row: TaskRow, to: TaskState) -> None:
    """A lease that ran out unnoticed is judged by what its holder believes to be."""
    have = TaskState(row["state"])
    if have is TaskState.PENDING:
        have = TaskState.FETCHED if row["started_at"] is None else TaskState.PROCESSING
    if to not in TRANSITIONS[have]:
        raise illegal(row["task_id"], have, to)


def _noted(row: TaskRow, report: ExternalUpdate, clock: Clock) -> dict[str, Any]:
    message = row["message"] if report.task_message is None else report.task_message
    started_at = row["started_at"] if report.started_at is None else report.started_at
    if started_at is None and report.status is TaskState.PROCESSING:
        started_at = clock.ms
    return {"message": message, "started_at": started_at}
