"""Rows of the task table and the nouns made of them, in both directions, and the one way to change a row."""

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from comfyd.errors import ComfydError
from comfyd.model.base import Now
from comfyd.model.task import Claim, Lease, NewTask, Outcome, Slot, Task, TaskState
from comfyd.store.ledger import Changes, from_json

_SHOWN: Final = (
    "seq, task_id, workflow_name, environment, state, priority, user_id, rank, attempts, max_attempts, infra_losses, "
    "cancel_requested, created_at, started_at, finished_at, message, output, callback_url, node_id, generation, "
    "instance, target_port, prompt_id, lease_expires_at, run_after, deadline, crashes"
)
_HELD: Final = "holder, token, lost_token, done_token, done_digest"
NAMES: Final = f"{_SHOWN}, params, {_HELD}".split(", ")
SHOWN: Final = f"{_SHOWN}, (SELECT json FROM task_params WHERE task_params.seq = task.seq) AS params"
ALL: Final = f"{SHOWN}, {_HELD}"
BARE: Final = f"{_SHOWN}, NULL AS params, {_HELD}"
"""All but the workflow, which may have megabytes."""
TaskRow = dict[str, Any]
"""Columns of `SHOWN` or `ALL` by name."""
_LEASED: Final = frozenset({TaskState.FETCHED, TaskState.PROCESSING})


class Clock(NamedTuple):
    """`now` of one call in the units of the table, and the boot that `mono` belongs to."""

    boot: str
    mono: float
    ms: int
    us: int
    wall: float

    @classmethod
    def of(cls, boot: str, now: Now) -> "Clock":
        return cls(boot, now.mono, int(now.wall * 1000), int(now.wall * 1_000_000), now.wall)


class Term(NamedTuple):
    """A lease as it is written: a fresh token and both expiries."""

    token: str
    boot: str
    mono: float
    at: int

    @classmethod
    def after(cls, clock: Clock, lease_s: float) -> "Term":
        return cls(secrets.token_hex(16), clock.boot, clock.mono + lease_s, clock.ms + int(lease_s * 1000))


def new_task_id() -> str:
    """`task_` and a uuid4 in hex, made here because uuid.uuid4() takes three times as long."""
    number = bytearray(os.urandom(16))
    number[6] = number[6] & 0x0F | 0x40
    number[8] = number[8] & 0x3F | 0x80
    return f"task_{number.hex()}"


_sorted: Final = json.JSONEncoder(sort_keys=True).encode


def digest(outcome: Outcome) -> str:
    """Names an outcome: the same report has the same digest."""
    crashed = [True] if outcome.crashed else []
    text = _sorted([outcome.state, outcome.message, outcome.output, outcome.charged, *crashed])
    return hashlib.sha256(text.encode()).hexdigest()


def not_found(task_id: str) -> ComfydError:
    return ComfydError("Task not found", code="task_not_found", details={"task_id": task_id})


def stale(task_id: str) -> ComfydError:
    return ComfydError(
        "The lease on this task is no longer yours; drop the work and fetch another task.",
        code="stale_lease",
        details={"task_id": task_id},
    )


def full() -> ComfydError:
    return ComfydError(
        "The queue is full (COMFYD_MAX_QUEUED); try again once some of its tasks are done.",
        code="queue_full",
        retryable=True,
    )


def illegal(task_id: str, have: str, want: str) -> ComfydError:
    return ComfydError(
        f"A task that is {have} cannot become {want}.",
        code="illegal_transition",
        details={"task_id": task_id, "from": have, "to": want},
    )


def find(db: sqlite3.Connection, task_id: str) -> TaskRow:
    """The row with all columns of `ALL`. Raises task_not_found."""
    row = db.execute(f"SELECT {ALL} FROM task WHERE task_id = ?", (task_id,)).fetchone()
    if row is None:
        raise not_found(task_id)
    return named(row)


def named(row: Iterable[Any]) -> TaskRow:
    """What `SHOWN` or `ALL` selected. sqlite3.Row looks a name up by walking through all of them."""
    return dict(zip(NAMES, row, strict=False))


def change(tx: Changes, row: TaskRow, **columns: Any) -> TaskRow:
    """Write these columns. Returns the row as it is now."""
    tx.change(row, columns)
    return {**row, **columns}


def task_of(row: TaskRow, params: dict[str, Any] | None = None) -> Task:
    """A queued task shows no place: where its last attempt ran is kept only for a holder that may come back.

    params: those of the row, if the caller has them already; a workflow takes longer to parse than all the rest.
    """
    state = TaskState(row["state"])
    placed: dict[str, Any] = {}
    if state is not TaskState.PENDING:
        placed = {
            "started_at": row["started_at"],
            "instance": row["instance"],
            "target_port": row["target_port"],
            "node_id": row["node_id"],
            "prompt_id": row["prompt_id"],
            "generation": row["generation"],
        }
    return Task(
        task_id=row["task_id"],
        workflow_name=row["workflow_name"],
        environment=row["environment"],
        status=state,
        params=from_json(row["params"]) if params is None else params,
        priority=row["priority"],
        rank=row["rank"],
        user_id=row["user_id"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        infra_losses=row["infra_losses"],
        crashes=row["crashes"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        task_message=row["message"],
        output_data=None if row["output"] is None else from_json(row["output"]),
        callback_url=row["callback_url"],
        lease_expires_at=row["lease_expires_at"] if state in _LEASED else None,
        cancel_requested=bool(row["cancel_requested"]),
        run_after=row["run_after"],
        deadline=row["deadline"],
        **placed,
    )


def task_of_new(new: NewTask, task_id: str, rank: int, created_at: int) -> Task:
    """What was just stored, without reading it back."""
    return Task.model_validate(
        {
            "task_id": task_id,
            "workflow_name": new.workflow_name,
            "environment": new.environment,
            "status": TaskState.PENDING,
            "params": new.params,
            "priority": new.priority,
            "rank": rank,
            "user_id": new.user_id,
            "max_attempts": new.max_attempts,
            "created_at": created_at,
            "callback_url": new.callback_url,
            "run_after": new.run_after,
            "deadline": new.deadline,
        }
    )


def claim_of(row: TaskRow, term: Term, slot: Slot | None) -> Claim:
    """prompt_id is "" for a task that an outside worker fetched."""
    lease = Lease(task_id=row["task_id"], token=term.token, expires_at=term.at, expires_mono=term.mono)
    return Claim(task=task_of(row), lease=lease, prompt_id=row["prompt_id"] or "", slot=slot)


def moved(tx: Changes, row: TaskRow, to: TaskState, message: str | None, wall: float) -> None:
    """The trace of a transition: one event, and the counts by state."""
    before = row["state"]
    data = {
        "from": before,
        "to": to.value,
        "workflow": row["workflow_name"],
        "instance": row["instance"],
        "message": message,
    }
    tx.note("task", row["task_id"], data, wall)
    if before != to:
        tx.count(row["environment"], row["workflow_name"], before, -1)
        tx.count(row["environment"], row["workflow_name"], to.value, 1)
