"""Statements that lease tasks out and take expired leases back. Each is one operation."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence

from comfyd.model.task import Outcome, Slot, TaskState
from comfyd.store.ledger import Transaction
from comfyd.store.task_finish import put_back
from comfyd.store.task_rows import ALL, SHOWN, Clock, Term, find, moved, stale

# INDEXED BY: without statistics the planner may prefer the index on state, which grows with the queue.
_CLAIM = f"""
UPDATE task SET state = 'PROCESSING', attempts = attempts + 1, started_at = :now_ms, message = NULL, holder = NULL,
    node_id = :node_id, slot = :slot, generation = :generation, instance = :instance, target_port = :port,
    prompt_id = :prompt_id, lost_token = token, token = :token, lease_boot = :boot, lease_mono = :mono,
    lease_expires_at = :at
WHERE seq = (SELECT seq FROM task INDEXED BY task_queue
    WHERE state = 'PENDING' AND environment = :environment ORDER BY rank, seq LIMIT 1)
RETURNING {SHOWN}
"""
_FETCH = f"""
UPDATE task SET state = 'FETCHED', attempts = attempts + 1, started_at = NULL, message = NULL, holder = :holder,
    node_id = NULL, slot = NULL, generation = NULL, instance = NULL, target_port = :port,
    prompt_id = NULL, lost_token = token, token = :token, lease_boot = :boot, lease_mono = :mono,
    lease_expires_at = :at
WHERE seq = :seq
RETURNING {SHOWN}
"""
_BEST_OF_ENVIRONMENT = (
    "SELECT rank, seq, environment FROM task INDEXED BY task_queue "
    "WHERE state = 'PENDING' AND environment = ? ORDER BY rank, seq LIMIT 1"
)
_BEST_OF_WORKFLOW = (
    "SELECT rank, seq, environment FROM task INDEXED BY task_workflow_queue "
    "WHERE state = 'PENDING' AND workflow_name = ? {where} ORDER BY rank, seq LIMIT 1"
)
_NEXT_ENVIRONMENT = (
    "SELECT min(environment) FROM task INDEXED BY task_queue WHERE state = 'PENDING' AND environment > ?"
)
_RENEW = "UPDATE task SET state = ?, lease_boot = ?, lease_mono = ?, lease_expires_at = ? WHERE seq = ?"


def take_back(tx: Transaction, clock: Clock) -> None:
    """Return every task whose lease ran out to the queue. Its token stays good until someone else gets the task."""
    expired = tx.db.execute(
        f"SELECT {ALL} FROM task INDEXED BY task_held WHERE token IS NOT NULL AND lease_mono <= ?", (clock.mono,)
    ).fetchall()
    for row in expired:
        outcome = Outcome(state=TaskState.PENDING, message=f"The lease ran out in attempt {row['attempts']}.")
        put_back(tx, row, outcome, clock, keep_token=True)


def claim(
    tx: Transaction, wanted: Sequence[tuple[Slot, Term, str]], node_id: str, clock: Clock
) -> list[tuple[sqlite3.Row, Term, Slot]]:
    """Fill each slot with the best queued task of its environment."""
    take_back(tx, clock)
    granted = []
    for slot, term, prompt_id in wanted:
        row = tx.db.execute(
            _CLAIM,
            {
                "now_ms": clock.ms,
                "node_id": node_id,
                "slot": slot.key,
                "generation": slot.generation,
                "instance": slot.instance,
                "port": slot.port,
                "prompt_id": prompt_id,
                "token": term.token,
                "boot": term.boot,
                "mono": term.mono,
                "at": term.at,
                "environment": slot.environment,
            },
        ).fetchone()
        if row is not None:
            _granted(tx, row, TaskState.PROCESSING, clock)
            granted.append((row, term, slot))
    return granted


def _granted(tx: Transaction, row: sqlite3.Row, to: TaskState, clock: Clock) -> None:
    environment, workflow = row["environment"], row["workflow_name"]
    data = {"from": "PENDING", "to": to.value, "workflow": workflow, "instance": row["instance"], "message": None}
    tx.note("task", row["task_id"], data, clock.wall)
    tx.count(environment, workflow, "PENDING", -1)
    tx.count(environment, workflow, to.value, 1)


def fetch(
    tx: Transaction,
    caller: str,
    workflows: Sequence[str] | None,
    environments: Sequence[str] | None,
    targets: Mapping[str, int],
    term: Term,
    clock: Clock,
) -> sqlite3.Row | None:
    take_back(tx, clock)
    if workflows is None:
        found = _best_of_environments(tx.db, environments)
    else:
        found = _best_of_workflows(tx.db, workflows, environments)
    if not found:
        return None
    best = min(found, key=lambda row: (row["rank"], row["seq"]))
    row: sqlite3.Row = tx.db.execute(
        _FETCH,
        {
            "holder": caller,
            "port": targets.get(best["environment"]),
            "token": term.token,
            "boot": term.boot,
            "mono": term.mono,
            "at": term.at,
            "seq": best["seq"],
        },
    ).fetchone()
    _granted(tx, row, TaskState.FETCHED, clock)
    return row


def _best_of_environments(db: sqlite3.Connection, environments: Sequence[str] | None) -> list[sqlite3.Row]:
    names = _queued_environments(db) if environments is None else environments
    rows = (db.execute(_BEST_OF_ENVIRONMENT, (name,)).fetchone() for name in names)
    return [row for row in rows if row is not None]


def _queued_environments(db: sqlite3.Connection) -> list[str]:
    """By hops over the index: as many steps as there are environments, however long the queue."""
    names: list[str] = []
    while True:
        (name,) = db.execute(_NEXT_ENVIRONMENT, (names[-1] if names else "",)).fetchone()
        if name is None:
            return names
        names.append(name)


def _best_of_workflows(
    db: sqlite3.Connection, workflows: Sequence[str], environments: Sequence[str] | None
) -> list[sqlite3.Row]:
    where, names = "", tuple[str, ...]()
    if environments is not None:
        where, names = f"AND environment IN ({', '.join('?' * len(environments))})", tuple(environments)
    rows = (
        db.execute(_BEST_OF_WORKFLOW.format(where=where), (workflow, *names)).fetchone() for workflow in set(workflows)
    )
    return [row for row in rows if row is not None]


def renew(tx: Transaction, task_id: str, token: str, term: Term, clock: Clock) -> None:
    """Extend the lease, also one that ran out as long as no one else got the task."""
    row = find(tx.db, task_id)
    if row["token"] != token:
        raise stale(task_id)
    extend(tx, row, _state_of_holder(row), term, clock)


def _state_of_holder(row: sqlite3.Row) -> TaskState:
    if row["state"] != TaskState.PENDING:
        return TaskState(row["state"])
    return TaskState.PROCESSING if row["started_at"] is not None else TaskState.FETCHED


def extend(tx: Transaction, row: sqlite3.Row, to: TaskState, term: Term, clock: Clock) -> None:
    """Move the expiry of a lease that is still the current one; its token stays."""
    tx.db.execute(_RENEW, (to, term.boot, term.mono, term.at, row["seq"]))
    if row["state"] != to:
        moved(tx, row, to, None, clock.wall)


def recover(tx: Transaction, node_id: str, terms: Callable[[], Term], clock: Clock) -> list[tuple[sqlite3.Row, Term]]:
    """Re-token this node's prompts, also those whose lease ran out while the daemon was away."""
    held = tx.db.execute(
        f"SELECT {ALL} FROM task INDEXED BY task_held WHERE token IS NOT NULL AND node_id = ? "
        "AND prompt_id IS NOT NULL AND state IN ('PROCESSING', 'PENDING') ORDER BY rank, seq",
        (node_id,),
    ).fetchall()
    found = []
    for row in held:
        term = terms()
        tx.db.execute("UPDATE task SET token = ?, lost_token = NULL WHERE seq = ?", (term.token, row["seq"]))
        extend(tx, row, TaskState.PROCESSING, term, clock)
        found.append((find(tx.db, row["task_id"]), term))
    return found
