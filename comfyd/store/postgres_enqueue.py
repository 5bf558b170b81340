"""Putting tasks into the shared queue: whatever has gathered while the last statement ran goes into the next one.

One statement at a time per node, so that tasks of one user and priority stand one cost apart. The id of a task is made
here, so a statement whose answer was lost can be sent again: what it stored already is found, not stored twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from comfyd.errors import ComfydError, StoreError
from comfyd.model.task import NewTask
from comfyd.store.ledger import dump
from comfyd.store.postgres_schema import Connection
from comfyd.store.task_due import WAITING
from comfyd.store.task_rows import full, new_task_id

MAX_BATCH: Final = 200
MAX_CHARACTERS: Final = 4_000_000
_INSERT: Final = f"""
WITH clock AS MATERIALIZED (SELECT comfyd_now_us() AS us), given AS MATERIALIZED (
    SELECT g.*, waits,
           (sum(CASE WHEN waits THEN 0 ELSE cost END) OVER (PARTITION BY lane ORDER BY n))::bigint AS behind
    FROM clock CROSS JOIN
         unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::int[],
                $9::text[], $10::text[], $11::text[], $12::text[], $13::bigint[], $14::bigint[])
    WITH ORDINALITY AS g(task_id, workflow_name, environment, priority, user_id, lane, cost, max_attempts,
                         callback_url, idempotency_key, body_digest, params, run_after, deadline, n)
    CROSS JOIN LATERAL (SELECT coalesce(run_after > clock.us / 1000, false) AS waits) AS w
), room AS MATERIALIZED (
    SELECT CASE WHEN $15::bigint > 0 THEN
        $15 - (SELECT coalesce(sum(n), 0) FROM comfyd_tally WHERE state = 'PENDING')
    END AS places
), top AS MATERIALIZED (
    SELECT l.lane, greatest(clock.us, (
        SELECT max(rank) FROM comfyd_task AS t WHERE t.lane = l.lane AND t.finished_at IS NULL AND rank < {WAITING}
    )) AS rank FROM (SELECT DISTINCT lane FROM given) AS l CROSS JOIN clock
)
INSERT INTO comfyd_task (task_id, workflow_name, environment, state, priority, user_id, lane, rank, max_attempts,
                         created_at, callback_url, idempotency_key, body_digest, params, run_after, deadline)
SELECT task_id, workflow_name, environment, 'PENDING', priority, user_id, lane,
       CASE WHEN waits THEN {WAITING} + cost ELSE top.rank + behind END, max_attempts,
       clock.us / 1000, callback_url, idempotency_key, body_digest, params, run_after, deadline
FROM given JOIN top USING (lane) CROSS JOIN clock CROSS JOIN room WHERE places IS NULL OR n <= places ORDER BY n
ON CONFLICT DO NOTHING RETURNING task_id, rank, created_at"""
_THERE: Final = (
    "SELECT task_id, idempotency_key, body_digest, rank, created_at FROM comfyd_task "
    "WHERE task_id = ANY ($1::text[]) OR idempotency_key = ANY ($2::text[])"
)


class Entry(NamedTuple):
    new: NewTask
    task_id: str
    params: str

    @classmethod
    def of(cls, new: NewTask) -> "Entry":
        return cls(new, new_task_id(), dump(new.params))


class Made(NamedTuple):
    """fresh: stored by this call. Else task_id is the one that the same idempotency key made before."""

    task_id: str
    rank: int
    created_at: int
    fresh: bool


Answer = Made | ComfydError


async def insert(db: Connection, entries: Sequence[Entry], most: int = 0) -> list[Answer]:
    """One statement for all; a second one only if some of them are there already.

    most: of queued tasks, 0 = any number. Nodes that insert at the same instant may exceed it by what they insert then.
    """
    made = {record["task_id"]: record for record in await db.fetch(_INSERT, *_columns(entries), most)}
    missing = [entry for entry in entries if entry.task_id not in made]
    there = {}
    if missing:
        keys = [entry.new.idempotency_key for entry in missing if entry.new.idempotency_key is not None]
        for record in await db.fetch(_THERE, [entry.task_id for entry in missing], keys):
            there[record["task_id"]] = there[record["idempotency_key"]] = record
    return [_answer(entry, made, there, bool(most)) for entry in entries]


def _columns(entries: Sequence[Entry]) -> tuple[list[Any], ...]:
    new = [entry.new for entry in entries]
    return (
        [entry.task_id for entry in entries],
        [one.workflow_name for one in new],
        [one.environment for one in new],
        [one.priority for one in new],
        [one.user_id for one in new],
        [lane_of(one) for one in new],
        [one.rank_cost for one in new],
        [one.max_attempts for one in new],
        [one.callback_url for one in new],
        [one.idempotency_key for one in new],
        [one.body_digest for one in new],
        [entry.params for entry in entries],
        [one.run_after for one in new],
        [one.deadline for one in new],
    )


def lane_of(new: NewTask) -> str:
    """Tasks of one lane stand one cost apart: one user's of one priority."""
    return new.priority if new.user_id is None else f"{new.priority} {new.user_id}"


def _answer(entry: Entry, made: dict[str, Any], there: dict[str | None, Any], limited: bool) -> Answer:
    own = made.get(entry.task_id) or there.get(entry.task_id)
    if own is not None:
        return Made(entry.task_id, own["rank"], own["created_at"], True)
    same = there.get(entry.new.idempotency_key) if entry.new.idempotency_key is not None else None
    if same is None and limited:
        return full()
    if same is None:  # its key was there a moment ago and has been cleared since
        return ComfydError("The task could not be stored now; try again.", code="store_unavailable", retryable=True)
    if same["body_digest"] != entry.new.body_digest:
        return ComfydError(
            "This Idempotency-Key was used with another body; send a new key.", code="idempotency_mismatch"
        )
    return Made(same["task_id"], same["rank"], same["created_at"], False)


class Gathering:
    """Callers that came while a statement was on its way share the next one."""

    def __init__(self, store: Callable[[Sequence[Entry]], Awaitable[Sequence[Answer]]]) -> None:
        self._store = store
        self._waiting: list[tuple[Entry, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, entry: Entry) -> Made:
        """Raises what refused the entry, or what made the whole statement fail."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="enqueue")
        answer = await future
        if isinstance(answer, ComfydError):
            raise answer
        return answer

    async def _run(self) -> None:
        try:
            while self._waiting:
                size = self._fitting()
                batch, self._waiting = self._waiting[:size], self._waiting[size:]
                await self._send(batch)
        finally:
            self._task = None

    def _fitting(self) -> int:
        """How many of those that wait go into one statement: at least one, of any size."""
        total = 0
        for n, (entry, _) in enumerate(self._waiting[:MAX_BATCH]):
            total += len(entry.params)
            if n and total > MAX_CHARACTERS:
                return n
        return min(len(self._waiting), MAX_BATCH)

    async def _send(self, batch: Sequence[tuple[Entry, "asyncio.Future[Answer]"]]) -> None:
        try:
            answers: Sequence[Any] = await self._store([entry for entry, _ in batch])
        except StoreError as error:
            answers = [error] * len(batch)
        except Exception as error:  # one of them is not fit to be stored: the others are not to suffer for it
            if len(batch) > 1:
                for one in batch:
                    await self._send([one])
                return
            answers = [error]
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
