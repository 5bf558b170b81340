"""TaskStore on a PostgreSQL that many nodes share, on the server's clock. `now` is only for this node's event log.

Every call may be sent again after a lost connection. What makes that safe: ids, tokens and prompt ids are chosen before
the first try, a finish reported twice is answered twice, and the rest gives the same when done again.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, TypeVar

from comfyd.failpoint import failpoint
from comfyd.model.base import Now
from comfyd.model.task import (
    Claim,
    ExternalUpdate,
    Lease,
    Limits,
    NewTask,
    Outcome,
    Slot,
    Task,
    TaskFilter,
    TaskPage,
    TaskState,
    TaskStats,
)
from comfyd.store import postgres_limits, postgres_queue, postgres_read
from comfyd.store.postgres_enqueue import Answer, Entry, Gathering, insert
from comfyd.store.postgres_link import Link
from comfyd.store.postgres_queue import Wish, wishes_for
from comfyd.store.postgres_rows import Draft, claim_of, created, lock_row
from comfyd.store.postgres_schema import Connection
from comfyd.store.postgres_upkeep import Tries, Upkeep
from comfyd.store.task_external import update_row
from comfyd.store.task_finish import Late, cancel_row, finish_row, retry_row
from comfyd.store.task_queue import renew_row
from comfyd.store.task_rows import Clock, TaskRow, Term, stale, task_of, task_of_new
from comfyd.store.writer import Writer

T = TypeVar("T")
Rows = Sequence[TaskRow]
MAX_HANDED: Final = 64
CLEAR_S: Final = 60.0
_PARAMS: Final = "SELECT params FROM comfyd_task WHERE task_id = $1"


class PostgresTasks(Upkeep):
    """node_id: recorded in every claim. writer: of this node's event log, which gets what this node does to tasks."""

    def __init__(self, link: Link, writer: Writer, node_id: str, max_queued: int = 0) -> None:
        super().__init__(link, writer, node_id)
        self._max_queued = max_queued
        self._limits: Limits = {}
        self._handed: dict[str, dict[str, Any]] = {}
        self._gathering = Gathering(self._insert)

    # putting in and looking
    async def enqueue(self, new: NewTask, now: Now) -> tuple[Task, bool]:
        entry = Entry.of(new)
        made = await self._gathering.add(entry)
        if not made.fresh:
            return await self.get(made.task_id), False
        self._tell([created(entry.task_id, new.workflow_name, now.wall)])
        failpoint("enqueue_after_commit")
        return task_of_new(new, entry.task_id, made.rank, made.created_at), True

    async def _insert(self, entries: Sequence[Entry]) -> Sequence[Answer]:
        failpoint("enqueue_before_commit")
        return await self._link.call(lambda db, again: insert(db, entries, self._max_queued))

    async def get(self, task_id: str) -> Task:
        return await self._link.call(lambda db, again: postgres_read.one(db, task_id))

    async def list(self, wanted: TaskFilter) -> TaskPage:
        return await self._link.call(lambda db, again: postgres_read.page(db, wanted))

    async def stats(self) -> TaskStats:
        return await self._link.call(lambda db, again: postgres_read.stats(db))

    async def pending(self, environments: Sequence[str]) -> int:
        return await self._link.call(lambda db, again: postgres_read.pending(db, environments))

    async def load(self) -> dict[int, int]:
        return await self._link.call(lambda db, again: postgres_read.load(db, self._node_id))

    async def next_expiry(self, now: Now) -> float | None:
        return await self._link.call(lambda db, again: postgres_read.next_expiry(db))

    async def clear(self) -> int:
        return await self._link.call(lambda db, again: postgres_read.clear(db), CLEAR_S)

    # leasing out
    async def claim(self, slots: Sequence[Slot], lease_s: float, now: Now) -> tuple[Claim, ...]:
        wishes = wishes_for(slots)

        async def work(db: Connection, again: bool, tries: Tries) -> Rows:
            if again and (rows := await self._granted(db, wishes)):
                return rows
            tries.append(draft := Draft())
            await self._settle_due(db, draft, now)
            async with self._turn(db):
                return await postgres_queue.claim(db, draft, wishes, self._term(lease_s), now.wall, self._limits)

        rows = await self._call(work)
        if rows:
            failpoint("lease_committed")
        return self._claims(rows, wishes)

    def set_limits(self, limits: Limits) -> None:
        self._limits = dict(limits)

    def _turn(self, db: Connection) -> AbstractAsyncContextManager[Any]:
        """The transaction to whose end a turn lasts, if there is anything to take turns for."""
        turn: AbstractAsyncContextManager[Any] = db.transaction() if self._limits else nullcontext()
        return turn

    async def _settle_due(self, db: Connection, draft: Draft, now: Now) -> None:
        if not await db.fetchval(f"SELECT {postgres_queue.OVERDUE}"):
            return
        lapsed = Draft()
        async with db.transaction():
            await postgres_queue.settle_due(db, lapsed, now.wall)
        draft.notes += lapsed.notes

    async def _granted(self, db: Connection, wishes: Sequence[Wish]) -> Rows:
        return await postgres_queue.granted(db, [wish.token for wish in wishes], self._node_id)

    def _term(self, lease_s: float) -> tuple[int, str]:
        return int(lease_s * 1000), self._node_id

    def _claims(self, rows: Sequence[TaskRow], wishes: Sequence[Wish]) -> tuple[Claim, ...]:
        """Remembers the latest parameters, so that a finish need not read them again."""
        slots = {wish.token: wish.slot for wish in wishes}
        claims = tuple(claim_of(row, slots.get(row["token"])) for row in rows)
        for claim in claims:
            self._handed[claim.task.task_id] = claim.task.params
        while len(self._handed) > MAX_HANDED:
            del self._handed[next(iter(self._handed))]
        return claims

    async def fetch(
        self,
        caller: str,
        workflow_names: Sequence[str] | None,
        environments: Sequence[str] | None,
        targets: Mapping[str, int],
        lease_s: float,
        now: Now,
    ) -> Claim | None:
        grant = (*self._term(lease_s), secrets.token_hex(16), caller)

        async def work(db: Connection, again: bool, tries: Tries) -> TaskRow | None:
            if again and (rows := await postgres_queue.granted(db, [grant[2]], self._node_id)):
                return rows[0]
            tries.append(draft := Draft())
            await self._settle_due(db, draft, now)
            names = workflow_names, environments
            async with self._turn(db):
                return await postgres_queue.fetch(db, draft, names, targets, grant, now.wall, self._limits)

        row = await self._call(work)
        if row is None:
            return None
        failpoint("lease_committed")
        return claim_of(row, None)

    async def renew(self, lease: Lease, lease_s: float, now: Now) -> Lease:
        def decide(draft: Draft, row: TaskRow, clock: Clock, again: bool) -> int:
            term = Term.after(clock, lease_s)
            renew_row(draft, row, lease.token, term, clock)
            return term.at

        until = await self._act(lease.task_id, decide, now)
        return lease.model_copy(update={"expires_at": until, "expires_mono": None})

    async def recover(self, node_id: str, lease_s: float, now: Now) -> tuple[Claim, ...]:
        async def work(db: Connection, again: bool, tries: Tries) -> Rows:
            draft = Draft()
            async with db.transaction():
                rows = await postgres_queue.recover(db, draft, node_id, lease_s, now.wall)
                tries.append(draft)
            return rows

        found = await self._call(work)
        if found:
            failpoint("lease_committed")
        return tuple(claim_of(row, None) for row in found)

    # ending
    async def finish(self, lease: Lease, outcome: Outcome, now: Now) -> Task:
        task, _ = await self._finish(lease, outcome, (), 0, now)
        return task

    async def finish_and_claim(
        self, lease: Lease, outcome: Outcome, slots: Sequence[Slot], lease_s: float, now: Now
    ) -> tuple[Task, tuple[Claim, ...]]:
        wishes = wishes_for(slots)
        task, rows = await self._finish(lease, outcome, wishes, lease_s, now)
        return task, self._claims(rows, wishes)

    async def _finish(
        self, lease: Lease, outcome: Outcome, wishes: Sequence[Wish], lease_s: float, now: Now
    ) -> tuple[Task, Rows]:
        """Both in one transaction; a result that came too late is kept, and nothing is claimed for it."""
        task_id = lease.task_id
        params = self._handed.get(task_id)

        async def work(db: Connection, again: bool, tries: Tries) -> tuple[TaskRow | Late, Rows]:
            draft = Draft()
            async with db.transaction():
                row, clock = await lock_row(db, task_id, now.wall)
                ended = finish_row(draft, row, lease.token, outcome, clock)
                await draft.write(db)
                await postgres_limits.freed(db, self._limits, row["environment"])
                rows: Rows = ()
                if not isinstance(ended, Late):
                    if params is None:
                        ended["params"] = await db.fetchval(_PARAMS, task_id)
                    rows = await self._following(db, draft, wishes, (lease_s, now, again))
                tries.append(draft)
                failpoint("result_before_commit")
            return ended, rows

        ended, rows = await self._call(work)
        if isinstance(ended, Late):
            raise stale(task_id)
        failpoint("result_committed")
        self._handed.pop(task_id, None)
        return task_of(ended, params), rows

    async def _following(
        self, db: Connection, draft: Draft, wishes: Sequence[Wish], how: tuple[float, Now, bool]
    ) -> Rows:
        lease_s, now, again = how
        if not wishes:
            return ()
        if again and (rows := await self._granted(db, wishes)):
            return rows
        if await db.fetchval(f"SELECT {postgres_queue.OVERDUE}"):
            await postgres_queue.settle_due(db, draft, now.wall)
        return await postgres_queue.claim(db, draft, wishes, self._term(lease_s), now.wall, self._limits)

    async def update(self, change: ExternalUpdate, lease_s: float, now: Now) -> Task:
        def decide(draft: Draft, row: TaskRow, clock: Clock, again: bool) -> TaskRow | Late:
            return update_row(draft, row, change, Term.after(clock, lease_s), clock)

        row = await self._act(change.task_id, decide, now)
        if isinstance(row, Late):
            raise stale(change.task_id)
        failpoint("result_committed")
        return task_of(row)

    async def cancel(self, task_id: str, now: Now) -> Task:
        def decide(draft: Draft, row: TaskRow, clock: Clock, again: bool) -> TaskRow:
            if again and row["state"] == TaskState.CANCELLED:
                return row
            return cancel_row(draft, row, clock)

        row = await self._act(task_id, decide, now)
        failpoint("cancel_committed")
        return task_of(row)

    async def retry(self, task_id: str, now: Now) -> Task:
        def decide(draft: Draft, row: TaskRow, clock: Clock, again: bool) -> TaskRow:
            if again and row["state"] not in {TaskState.FAILED, TaskState.CANCELLED}:
                return row
            return retry_row(draft, row, clock)

        return task_of(await self._act(task_id, decide, now))

    async def _act(self, task_id: str, decide: Callable[[Draft, TaskRow, Clock, bool], T], now: Now) -> T:
        """Lock the row, decide, write. A row in the answer gets its workflow. An error of `decide` changes nothing."""

        async def work(db: Connection, again: bool, tries: Tries) -> T:
            draft = Draft()
            async with db.transaction():
                row, clock = await lock_row(db, task_id, now.wall)
                result = decide(draft, row, clock, again)
                await draft.write(db)
                if isinstance(result, dict):
                    await postgres_limits.freed(db, self._limits, row["environment"])
                    result["params"] = await db.fetchval(_PARAMS, task_id)
                tries.append(draft)
            return result

        return await self._call(work)
