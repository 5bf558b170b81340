"""Putting tasks in: many callers at once, in as few statements as one of them would need.

Must not: be called outside `Writer.write_shared`, which keeps all of it or nothing.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from comfyd.errors import ComfydError
from comfyd.model.task import NewTask
from comfyd.store.insert import Insert
from comfyd.store.ledger import Transaction, dump
from comfyd.store.task_rows import Clock

_TASKS = Insert(
    "task (seq, task_id, workflow_name, environment, state, priority, user_id, rank, max_attempts, created_at, "
    "callback_url, idempotency_key, body_digest)",
    "(?, ?, ?, ?, 'PENDING', ?, ?, ?, ?, ?, ?, ?, ?)",
)
_PARAMS = Insert("task_params (seq, json)", "(?, ?)")
# INDEXED BY: without statistics the planner may prefer the index on state, which grows with the queue.
_TOP = (
    "SELECT (SELECT max(seq) FROM task), "
    "(SELECT max(rank) FROM task INDEXED BY task_lane WHERE finished_at IS NULL AND user_id IS ? AND priority = ?)"
)
_SAME_KEY = "SELECT seq, body_digest FROM task WHERE idempotency_key = ?"


class Entry(NamedTuple):
    """What one caller wants stored. params: as JSON text."""

    new: NewTask
    task_id: str
    params: str
    clock: Clock


Answer = tuple[int, bool] | ComfydError
"""(rank, True), or (seq of the task that the same key made, False), or idempotency_mismatch."""


def enqueue(tx: Transaction, entries: Sequence[Entry]) -> list[Answer]:
    batch = _Batch(tx.db)
    answers = [batch.add(entry) for entry in entries]
    _TASKS(tx.db, batch.tasks)
    _PARAMS(tx.db, batch.params)
    texts = {workflow: dump(_created(workflow)) for _, workflow in batch.places}
    for entry in batch.added:
        tx.note_text("task", entry.task_id, texts[entry.new.workflow_name], entry.clock.wall)
    for (environment, workflow), n in batch.places.items():
        tx.count(environment, workflow, "PENDING", n)
    return answers


def _created(workflow: str) -> dict[str, str | None]:
    return {"from": None, "to": "PENDING", "workflow": workflow, "instance": None, "message": None}


class _Batch:
    """Rows that are about to be inserted, and what they mean for those that follow."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.added: list[Entry] = []
        self.tasks: list[tuple[Any, ...]] = []
        self.params: list[tuple[int, str]] = []
        self.places: dict[tuple[str, str], int] = {}
        self._db = db
        self._seq = 0
        self._lanes: dict[tuple[str | None, str], int] = {}
        self._keys: dict[str, tuple[int, str]] = {}

    def add(self, entry: Entry) -> Answer:
        new, clock = entry.new, entry.clock
        key = new.idempotency_key
        if key is not None:
            known = self._keys.get(key) or self._db.execute(_SAME_KEY, (key,)).fetchone()
            if known is not None:
                return (known[0], False) if known[1] == new.body_digest else _mismatch()
        lane = new.user_id, new.priority
        if lane not in self._lanes:
            last, top = self._db.execute(_TOP, lane).fetchone()
            self._seq = max(self._seq, last or 0)
            self._lanes[lane] = top or 0
        self._lanes[lane] = rank = max(clock.us, self._lanes[lane]) + new.rank_cost
        self._seq = seq = self._seq + 1
        if key is not None:
            self._keys[key] = (seq, new.body_digest)
        place = new.workflow_name, new.environment
        costs = new.max_attempts, clock.ms, new.callback_url, key, new.body_digest
        self.tasks.append((seq, entry.task_id, *place, new.priority, new.user_id, rank, *costs))
        self.params.append((seq, entry.params))
        home = new.environment, new.workflow_name
        self.places[home] = self.places.get(home, 0) + 1
        self.added.append(entry)
        return rank, True


def _mismatch() -> ComfydError:
    return ComfydError("This Idempotency-Key was used with another body; send a new key.", code="idempotency_mismatch")
