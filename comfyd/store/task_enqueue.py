"""Putting tasks in: many callers at once, in as few statements as one of them would need.

Must not: be called outside `Writer.write_shared`, which keeps all of it or nothing.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from comfyd.errors import ComfydError
from comfyd.model.task import NewTask
from comfyd.store.insert import Insert
from comfyd.store.known import Lane
from comfyd.store.ledger import Transaction, dump
from comfyd.store.task_due import WAITING, top, waits
from comfyd.store.task_rows import Clock, full

_TASKS = Insert(
    "task (seq, task_id, workflow_name, environment, state, priority, user_id, rank, max_attempts, created_at, "
    "callback_url, idempotency_key, body_digest, run_after, deadline)",
    "(?, ?, ?, ?, 'PENDING', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
)
_PARAMS = Insert("task_params (seq, json)", "(?, ?)")
_NEWEST = "SELECT coalesce(max(seq), 0) FROM task"
_SAME_KEY = "SELECT seq, body_digest FROM task WHERE idempotency_key = ?"


class Entry(NamedTuple):
    """What one caller wants stored. params: as JSON text."""

    new: NewTask
    task_id: str
    params: str
    clock: Clock


Answer = tuple[int, bool] | ComfydError
"""(rank, True), or (seq of the task that the same key made, False), or idempotency_mismatch, queue_full."""


def enqueue(tx: Transaction, entries: Sequence[Entry], most: int = 0) -> list[Answer]:
    """most: of queued tasks, 0 = any number."""
    batch = _Batch(tx, most - tx.queued() if most else math.inf)
    answers = [batch.add(entry) for entry in entries]
    _TASKS(tx.db, batch.tasks)
    _PARAMS(tx.db, batch.params)
    batch.remember()
    for entry in batch.added:
        tx.note_text("task", entry.task_id, _created(entry.new.workflow_name), entry.clock.wall)
    for (environment, workflow), n in batch.places.items():
        tx.count(environment, workflow, "PENDING", n)
    return answers


@lru_cache(maxsize=256)
def _created(workflow: str) -> str:
    return dump({"from": None, "to": "PENDING", "workflow": workflow, "instance": None, "message": None})


class _Batch:
    """Rows that are about to be inserted, and what they mean for those that follow."""

    def __init__(self, tx: Transaction, room: float) -> None:
        self._room = room
        self.added: list[Entry] = []
        self.tasks: list[tuple[Any, ...]] = []
        self.params: list[tuple[int, str]] = []
        self.places: dict[tuple[str, str], int] = {}
        self._tx, self._db, self._known = tx, tx.db, tx.known
        seq = tx.known.seq
        self._seq: int = seq if seq is not None else tx.db.execute(_NEWEST).fetchone()[0]
        self._lanes: dict[Lane, int] = {}
        self._keys: dict[str, tuple[int, str]] = {}

    def add(self, entry: Entry) -> Answer:
        new, clock = entry.new, entry.clock
        key = new.idempotency_key
        if key is not None:
            known = self._keys.get(key) or self._db.execute(_SAME_KEY, (key,)).fetchone()
            if known is not None:
                return (known[0], False) if known[1] == new.body_digest else _mismatch()
        if len(self.added) >= self._room:
            return full()
        rank = WAITING + new.rank_cost if waits(new, clock.ms) else self._behind(new, clock)
        self._seq = seq = self._seq + 1
        if key is not None:
            self._keys[key] = (seq, new.body_digest)
        place = new.workflow_name, new.environment
        costs = new.max_attempts, clock.ms, new.callback_url, key, new.body_digest, new.run_after, new.deadline
        self.tasks.append((seq, entry.task_id, *place, new.priority, new.user_id, rank, *costs))
        self.params.append((seq, entry.params))
        home = new.environment, new.workflow_name
        self.places[home] = self.places.get(home, 0) + 1
        self.added.append(entry)
        return rank, True

    def _behind(self, new: NewTask, clock: Clock) -> int:
        """The rank of an arrival: behind the others of its lane."""
        lane = new.user_id, new.priority
        rank = max(clock.us, self._lanes.get(lane) or top(self._tx, lane)) + new.rank_cost
        self._lanes[lane] = rank
        return rank

    def remember(self) -> None:
        """Once the rows are inserted."""
        self._known.seq = self._seq
        for lane, rank in self._lanes.items():
            self._known.put_top(lane, rank)


def _mismatch() -> ComfydError:
    return ComfydError("This Idempotency-Key was used with another body; send a new key.", code="idempotency_mismatch")
