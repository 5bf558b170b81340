"""TaskStore on the embedded database: each method is one operation on the writer thread."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

from comfyd.failpoint import failpoint
from comfyd.model.base import Now
from comfyd.model.task import (
    Claim,
    ExternalUpdate,
    Lease,
    Limits,
    NewTask,
    Outcome,
    Pause,
    Slot,
    Task,
    TaskFilter,
    TaskPage,
    TaskStats,
)
from comfyd.store import task_enqueue, task_external, task_finish, task_pause, task_queue, task_read, task_remove
from comfyd.store.ledger import Transaction, dump
from comfyd.store.task_due import next_due_ms
from comfyd.store.task_rows import Clock, TaskRow, Term, claim_of, new_task_id, stale, task_of, task_of_new
from comfyd.store.writer import Writer

MAX_HANDED: Final = 64
Granted = list[tuple[TaskRow, Term, Slot]]


def _enqueue_before() -> None:
    failpoint("enqueue_before_commit")


def _enqueue_after(made: object) -> None:
    failpoint("enqueue_after_commit")


def _leased(granted: Sequence[object] | TaskRow | None) -> None:
    if granted:
        failpoint("lease_committed")


def _finish_before() -> None:
    failpoint("result_before_commit")


def _finished(row: TaskRow | task_finish.Late) -> None:
    if not isinstance(row, task_finish.Late):
        failpoint("result_committed")


def _finished_and_leased(both: tuple[TaskRow, Granted] | None) -> None:
    if both is not None:
        _finished(both[0])
        _leased(both[1])


def _cancelled(row: TaskRow) -> None:
    failpoint("cancel_committed")


def _paused(pauses: object) -> None:
    failpoint("queue_paused")


class SqliteTasks:
    """boot_id: whose `now.mono` is spoken of. node_id: recorded in every claim. max_queued: 0 = any number."""

    def __init__(self, writer: Writer, boot_id: str, node_id: str, max_queued: int = 0) -> None:
        self._writer = writer
        self._boot_id = boot_id
        self._node_id = node_id
        self._put_in = partial(task_enqueue.enqueue, most=max_queued)  # one object: neighbours share a call
        self._limits: Limits = {}
        self._handed: dict[str, dict[str, Any]] = {}

    def _clock(self, now: Now) -> Clock:
        return Clock.of(self._boot_id, now)

    async def enqueue(self, new: NewTask, now: Now) -> tuple[Task, bool]:
        entry = task_enqueue.Entry(new, new_task_id(), dump(new.params), self._clock(now))
        number, made = await self._writer.write_shared(
            self._put_in, entry, before=_enqueue_before, after=_enqueue_after
        )
        if made:
            return task_of_new(new, entry.task_id, number, entry.clock.ms), True
        return await self._writer.read(lambda db: task_read.by_seq(db, number)), False

    async def get(self, task_id: str) -> Task:
        return await self._writer.read(lambda db: task_read.one(db, task_id))

    async def list(self, wanted: TaskFilter) -> TaskPage:
        return await self._writer.read(lambda db: task_read.page(db, wanted))

    async def stats(self) -> TaskStats:
        return await self._writer.read(task_read.stats)

    async def pending(self, environments: Sequence[str]) -> int:
        return await self._writer.read(lambda db: task_read.pending(db, environments))

    async def load(self) -> dict[int, int]:
        return dict(await self._writer.read(task_read.load))

    async def next_expiry(self, now: Now) -> float | None:
        def look(db: sqlite3.Connection) -> list[float]:
            lapse, due = task_read.next_lapse(db), next_due_ms(db)
            left = [] if lapse is None else [lapse - now.mono]
            return left if due is None else [*left, due / 1000 - now.wall]

        return min(await self._writer.read(look), default=None)

    def set_limits(self, limits: Limits) -> None:
        self._limits = dict(limits)

    async def claim(self, slots: Sequence[Slot], lease_s: float, now: Now) -> tuple[Claim, ...]:
        granted = await self._writer.write(self._claim(slots, lease_s, self._clock(now)), after=_leased)
        return self._claims(granted)

    def _claims(self, granted: Granted) -> tuple[Claim, ...]:
        """Made here and not by the writer, which others wait for. Remembers the latest parameters for `finish`."""
        claims = tuple(claim_of(row, term, slot) for row, term, slot in granted)
        for claim in claims:
            self._handed[claim.task.task_id] = claim.task.params
        while len(self._handed) > MAX_HANDED:
            del self._handed[next(iter(self._handed))]
        return claims

    def _claim(self, slots: Sequence[Slot], lease_s: float, clock: Clock) -> Callable[[Transaction], Granted]:
        limits = self._limits
        wanted = [(slot, Term.after(clock, lease_s), str(uuid4())) for slot in slots]
        return lambda tx: task_queue.claim(tx, wanted, self._node_id, clock, limits)

    async def fetch(
        self,
        caller: str,
        workflow_names: Sequence[str] | None,
        environments: Sequence[str] | None,
        targets: Mapping[str, int],
        lease_s: float,
        now: Now,
    ) -> Claim | None:
        clock = self._clock(now)
        term = Term.after(clock, lease_s)
        limits = self._limits
        asked = workflow_names, environments

        row = await self._writer.write(
            lambda tx: task_queue.fetch(tx, caller, asked, targets, term, clock, limits), after=_leased
        )
        return None if row is None else claim_of(row, term, None)

    async def renew(self, lease: Lease, lease_s: float, now: Now) -> Lease:
        clock = self._clock(now)
        term = Term.after(clock, lease_s)
        await self._writer.write(lambda tx: task_queue.renew(tx, lease.task_id, lease.token, term, clock))
        return lease.model_copy(update={"expires_at": term.at, "expires_mono": term.mono})

    async def finish(self, lease: Lease, outcome: Outcome, now: Now) -> Task:
        clock = self._clock(now)
        return await self._settle(
            lease.task_id, lambda tx: task_finish.finish(tx, lease.task_id, lease.token, outcome, clock)
        )

    async def _settle(self, task_id: str, act: Callable[[Transaction], TaskRow | task_finish.Late]) -> Task:
        row = await self._writer.write(act, before=_finish_before, after=_finished)
        if isinstance(row, task_finish.Late):
            raise stale(task_id)
        return task_of(row, self._handed.pop(task_id, None))

    async def finish_and_claim(
        self, lease: Lease, outcome: Outcome, slots: Sequence[Slot], lease_s: float, now: Now
    ) -> tuple[Task, tuple[Claim, ...]]:
        clock = self._clock(now)
        claim = self._claim(slots, lease_s, clock)

        def run(tx: Transaction) -> tuple[TaskRow, Granted] | None:
            row = task_finish.finish(tx, lease.task_id, lease.token, outcome, clock)
            return None if isinstance(row, task_finish.Late) else (row, claim(tx))

        both = await self._writer.write(run, before=_finish_before, after=_finished_and_leased)
        if both is None:
            raise stale(lease.task_id)
        return task_of(both[0], self._handed.pop(lease.task_id, None)), self._claims(both[1])

    async def update(self, change: ExternalUpdate, lease_s: float, now: Now) -> Task:
        clock = self._clock(now)
        term = Term.after(clock, lease_s)
        return await self._settle(change.task_id, lambda tx: task_external.update(tx, change, term, clock))

    async def cancel(self, task_id: str, now: Now) -> Task:
        clock = self._clock(now)
        return task_of(await self._writer.write(lambda tx: task_finish.cancel(tx, task_id, clock), after=_cancelled))

    async def retry(self, task_id: str, now: Now) -> Task:
        clock = self._clock(now)
        return task_of(await self._writer.write(lambda tx: task_finish.retry(tx, task_id, clock)))

    async def clear(self) -> int:
        return await self._writer.write(task_read.clear)

    async def pause(self, environment: str | None, caller: str, now: Now) -> tuple[Pause, ...]:
        clock = self._clock(now)
        return await self._writer.write(lambda tx: task_pause.pause(tx, environment, caller, clock), after=_paused)

    async def resume(self, environment: str | None, caller: str, now: Now) -> tuple[Pause, ...]:
        clock = self._clock(now)
        return await self._writer.write(lambda tx: task_pause.resume(tx, environment, caller, clock))

    async def pauses(self) -> tuple[Pause, ...]:
        return await self._writer.read(task_pause.pauses)

    async def delete(self, task_id: str, now: Now) -> None:
        clock = self._clock(now)
        await self._writer.write(lambda tx: task_remove.delete(tx, task_id, clock))

    async def expired(self, keep_s: float, now: Now, limit: int) -> tuple[tuple[str, ...], float | None]:
        until = int((now.wall - keep_s) * 1000)

        def look(db: sqlite3.Connection) -> tuple[tuple[str, ...], float | None]:
            oldest = task_remove.oldest(db)
            return task_remove.expired(db, until, limit), None if oldest is None else (oldest - until) / 1000

        return await self._writer.read(look)

    async def remove(self, task_ids: Sequence[str]) -> int:
        return await self._writer.write(lambda tx: task_remove.remove(tx, task_ids))

    async def recover(self, node_id: str, lease_s: float, now: Now) -> tuple[Claim, ...]:
        clock = self._clock(now)

        found = await self._writer.write(
            lambda tx: task_queue.recover(tx, node_id, lambda: Term.after(clock, lease_s), clock), after=_leased
        )
        return tuple(claim_of(row, term, None) for row, term in found)
