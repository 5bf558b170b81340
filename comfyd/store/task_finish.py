"""Statements by which a task leaves its holder: finished, put back, cancelled, or retried by hand."""

from typing import Final

from comfyd.model.task import TERMINAL, Outcome, TaskState
from comfyd.store.ledger import Changes, Transaction, dump, storable
from comfyd.store.task_rows import Clock, TaskRow, change, digest, find, illegal, moved, stale

MAX_INFRA_LOSSES: Final = 10
"""How often a task may come back uncharged; the next loss fails it."""

MAX_CRASHES: Final = 3
"""How often an instance may die while it runs a task."""

_NO_LEASE: Final[dict[str, None]] = {"lease_boot": None, "lease_mono": None, "lease_expires_at": None}


class Late:
    """A result that came too late: kept as an event, refused as a result."""


def finish(tx: Transaction, task_id: str, token: str, outcome: Outcome, clock: Clock) -> TaskRow | Late:
    """Apply `outcome` if `token` is the current one; do nothing if this very report was applied before.

    Returns the row as it is now.
    """
    return finish_row(tx, find(tx.db, task_id), token, outcome, clock)


def finish_row(tx: Changes, row: TaskRow, token: str, outcome: Outcome, clock: Clock) -> TaskRow | Late:
    """`finish` for a row that is at hand and that nobody else can change now."""
    outcome = storable_outcome(outcome)
    if outcome.state not in TERMINAL and outcome.state is not TaskState.PENDING:
        raise illegal(row["task_id"], row["state"], outcome.state)
    if row["token"] == token:
        return settle(tx, row, outcome, clock)
    if row["done_token"] == token and row["done_digest"] == digest(outcome):
        return row
    return refuse(tx, row, token, outcome, clock)


def storable_outcome(outcome: Outcome) -> Outcome:
    if outcome.message is None or outcome.message.isascii():
        return outcome
    return outcome.model_copy(update={"message": storable(outcome.message)})


def refuse(tx: Changes, row: TaskRow, token: str | None, outcome: Outcome, clock: Clock) -> Late:
    """Keep the result of the lease that was displaced last, once; raise stale_lease for any other."""
    if token is None or row["lost_token"] != token:
        raise stale(row["task_id"])
    change(tx, row, lost_token=None)
    data = {"state": outcome.state.value, "message": outcome.message, "output": outcome.output}
    tx.note("task_late", row["task_id"], data, clock.wall)
    return Late()


def settle(tx: Changes, row: TaskRow, outcome: Outcome, clock: Clock, finished_at: int | None = None) -> TaskRow:
    """The holder of the current lease ends its attempt."""
    if outcome.state is TaskState.PENDING:
        return put_back(tx, row, outcome, clock)
    return _end(tx, row, outcome, clock, finished_at=finished_at)


def put_back(tx: Changes, row: TaskRow, outcome: Outcome, clock: Clock, keep_token: bool = False) -> TaskRow:
    """Back to the queue, or to the end that is due: cancelled if so asked, failed if a budget is used up.

    keep_token: the lease ran out; its holder may still come back.
    """
    spent = _spent(row, outcome)
    ending = _ending(row, outcome, spent)
    if ending is not None:
        return _end(tx, row, outcome, clock, ending, spent, lost=keep_token)
    kept: dict[str, str | None] = {} if keep_token else {"token": None, **_done(row, outcome)}
    now = change(tx, row, state="PENDING", message=outcome.message, **spent, **_NO_LEASE, **kept)
    if row["state"] != TaskState.PENDING:
        moved(tx, row, TaskState.PENDING, outcome.message, clock.wall)
    return now


def _spent(row: TaskRow, outcome: Outcome) -> dict[str, int]:
    """The budgets after this attempt."""
    spent = {name: int(row[name]) for name in ("attempts", "infra_losses", "crashes")}
    if outcome.crashed or not outcome.charged:
        spent["attempts"] = max(0, spent["attempts"] - 1)
        spent["crashes" if outcome.crashed else "infra_losses"] += 1
    return spent


def _ending(row: TaskRow, outcome: Outcome, spent: dict[str, int]) -> tuple[TaskState, str | None] | None:
    if row["cancel_requested"]:
        return TaskState.CANCELLED, outcome.message
    reason = f" Last: {outcome.message}" if outcome.message else ""
    if spent["crashes"] >= MAX_CRASHES:
        return TaskState.FAILED, f"poison: its instance died {spent['crashes']} times while it ran.{reason}"
    if outcome.charged and not outcome.crashed and spent["attempts"] >= row["max_attempts"]:
        return TaskState.FAILED, f"Gave up after attempt {spent['attempts']} of {row['max_attempts']}.{reason}"
    if spent["infra_losses"] > MAX_INFRA_LOSSES:
        return TaskState.FAILED, f"Gave up after losing its instance {spent['infra_losses']} times.{reason}"
    return None


def _done(row: TaskRow, outcome: Outcome) -> dict[str, str | None]:
    return {"done_token": row["token"], "done_digest": digest(outcome)}


def _end(
    tx: Changes,
    row: TaskRow,
    outcome: Outcome,
    clock: Clock,
    ending: tuple[TaskState, str | None] | None = None,
    spent: dict[str, int] | None = None,
    *,
    finished_at: int | None = None,
    lost: bool = False,
) -> TaskRow:
    """Terminal. lost: no one reported this end, so the last token is only good for late evidence."""
    state, message = ending or (outcome.state, outcome.message)
    told = {"lost_token": row["token"] or row["lost_token"]} if lost else _done(row, outcome)
    now = change(
        tx,
        row,
        state=state.value,
        finished_at=clock.ms if finished_at is None else finished_at,
        ended_at=clock.ms,
        message=message,
        output=None if outcome.output is None else dump(outcome.output),
        token=None,
        **(spent or {}),
        **_NO_LEASE,
        **told,
    )
    moved(tx, row, state, message, clock.wall)
    return now


def end_unreported(tx: Changes, row: TaskRow, outcome: Outcome, clock: Clock) -> TaskRow:
    """Terminal, and no holder said so: its token is only good for late evidence."""
    return _end(tx, row, outcome, clock, lost=True)


def cancel(tx: Transaction, task_id: str, clock: Clock) -> TaskRow:
    return cancel_row(tx, find(tx.db, task_id), clock)


def cancel_row(tx: Changes, row: TaskRow, clock: Clock) -> TaskRow:
    state = TaskState(row["state"])
    if state in TERMINAL:
        raise illegal(row["task_id"], state, TaskState.CANCELLED)
    if state is not TaskState.PROCESSING:
        return end_unreported(tx, row, Outcome(state=TaskState.CANCELLED, message="Cancelled on request."), clock)
    if row["cancel_requested"]:
        return row
    moved(tx, row, state, "cancel requested", clock.wall)
    return change(tx, row, cancel_requested=1)


def retry(tx: Transaction, task_id: str, clock: Clock) -> TaskRow:
    return retry_row(tx, find(tx.db, task_id), clock)


def retry_row(tx: Changes, row: TaskRow, clock: Clock) -> TaskRow:
    if row["state"] not in {TaskState.FAILED, TaskState.CANCELLED}:
        raise illegal(row["task_id"], row["state"], TaskState.PENDING)
    missed = row["deadline"] is not None and row["deadline"] <= clock.ms
    moved(tx, row, TaskState.PENDING, "retried by hand", clock.wall)
    return change(
        tx,
        row,
        state="PENDING",
        attempts=0,
        infra_losses=0,
        crashes=0,
        cancel_requested=0,
        started_at=None,
        finished_at=None,
        ended_at=None,
        message=None,
        output=None,
        prompt_id=None,
        holder=None,
        lost_token=None,
        done_token=None,
        done_digest=None,
        deadline=None if missed else row["deadline"],
    )
