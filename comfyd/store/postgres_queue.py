"""Statements on the shared queue that lease tasks out and take expired leases back. Each runs in the caller's
transaction; rows that another node has locked are passed over (SKIP LOCKED), so that no node waits for another."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import uuid4

from comfyd.model.task import Limits, Slot, TaskState
from comfyd.store import postgres_limits
from comfyd.store.postgres_rows import COLUMNS, HELD, SERVER_MS, Draft, clock_of, row_of, storable_name
from comfyd.store.postgres_schema import Connection
from comfyd.store.task_due import MANY, WAITING, miss, ranked
from comfyd.store.task_limits import places
from comfyd.store.task_queue import lapse, retake
from comfyd.store.task_rows import TaskRow, Term

_LATE: Final = f"state = 'PENDING' AND deadline IS NOT NULL AND deadline <= {SERVER_MS}"
_RIPE: Final = f"state = 'PENDING' AND rank >= {WAITING} AND run_after <= {SERVER_MS}"
_MAY_RUN: Final = f"rank < {WAITING} AND (deadline IS NULL OR deadline > {SERVER_MS})"
OVERDUE: Final = f"""coalesce(least(
    (SELECT min(lease_expires_at) FROM comfyd_task WHERE lease_expires_at IS NOT NULL),
    (SELECT min(deadline) FROM comfyd_task WHERE state = 'PENDING' AND deadline IS NOT NULL),
    (SELECT min(run_after) FROM comfyd_task WHERE state = 'PENDING' AND rank >= {WAITING})
) <= {SERVER_MS}, false)"""
"""By the first of each: for EXISTS a planner without statistics reads the whole table."""
_EXPIRED: Final = (
    f"SELECT {HELD}, {SERVER_MS} AS server_ms FROM comfyd_task WHERE lease_expires_at <= {SERVER_MS} "
    f"ORDER BY seq LIMIT {MANY} FOR UPDATE SKIP LOCKED"
)
_MISSED: Final = (
    f"SELECT {HELD}, {SERVER_MS} AS server_ms FROM comfyd_task WHERE {_LATE} "
    f"ORDER BY deadline LIMIT {MANY} FOR UPDATE SKIP LOCKED"
)
_RIPENED: Final = (
    f"SELECT seq, lane, rank, run_after FROM comfyd_task WHERE {_RIPE} "
    f"ORDER BY run_after, seq LIMIT {MANY} FOR UPDATE SKIP LOCKED"
)
_TOPS: Final = f"""
SELECT l.lane, coalesce((
    SELECT max(rank) FROM comfyd_task AS t WHERE t.lane = l.lane AND t.finished_at IS NULL AND rank < {WAITING}
), 0) AS rank FROM unnest($1::text[]) AS l(lane)"""
_RANK: Final = """
UPDATE comfyd_task AS t SET rank = g.rank FROM unnest($1::bigint[], $2::bigint[]) AS g(seq, rank) WHERE t.seq = g.seq"""
_T_COLUMNS: Final = ", ".join(f"t.{name.strip()}" for name in COLUMNS.split(","))
_GRANT: Final = (
    "attempts = t.attempts + 1, message = NULL, lost_token = t.token, lease_expires_at = clock.ms + $1, node_id = $2"
)
_CLOCK: Final = f"clock AS MATERIALIZED (SELECT {SERVER_MS} AS ms)"
_PAUSED: Final = "EXISTS (SELECT FROM comfyd_pause AS p WHERE p.environment IN ('', {of}))"
_CLAIM: Final = f"""
WITH wanted AS (
    SELECT *, row_number() OVER (PARTITION BY environment ORDER BY n) AS turn
    FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::int[], $8::text[], $9::text[])
    WITH ORDINALITY AS w(environment, slot, generation, instance, port, prompt_id, token, n)
), best AS MATERIALIZED (
    SELECT c.seq, e.environment, row_number() OVER (PARTITION BY e.environment ORDER BY c.rank, c.seq) AS turn
    FROM (
        SELECT environment, count(*) AS many FROM wanted WHERE NOT {_PAUSED.format(of="wanted.environment")}
        GROUP BY environment
    ) AS e {{each}}
    CROSS JOIN LATERAL (
        SELECT seq, rank FROM comfyd_task
        WHERE state = 'PENDING' AND environment = e.environment {{and_}} AND {_MAY_RUN}
        ORDER BY rank, seq LIMIT e.many FOR UPDATE SKIP LOCKED
    ) AS c
), {_CLOCK}
UPDATE comfyd_task AS t SET state = 'PROCESSING', {_GRANT}, token = w.token, started_at = clock.ms, slot = w.slot,
    generation = w.generation, instance = w.instance, target_port = w.port, prompt_id = w.prompt_id, holder = NULL
FROM best AS b JOIN wanted AS w USING (environment, turn) CROSS JOIN clock
WHERE t.seq = b.seq RETURNING {_T_COLUMNS}"""
_CLAIM_ANY: Final = _CLAIM.format(each="", and_="")
_CLAIM_SOME: Final = _CLAIM.format(each="CROSS JOIN unnest($10::text[]) AS o(name)", and_="AND workflow_name = o.name")
"""For one wish: the best of each of these workflows, and of them the first."""
_FETCH: Final = f"""
WITH best AS MATERIALIZED (
    SELECT c.seq FROM (
        SELECT * FROM unnest($3::text[], $8::text[]) AS asked(environment, workflow)
        WHERE NOT {_PAUSED.format(of="asked.environment")}
    ) AS place CROSS JOIN LATERAL (
        SELECT seq, rank FROM comfyd_task WHERE state = 'PENDING' AND environment = place.environment {{and_}}
        AND {_MAY_RUN} ORDER BY rank, seq LIMIT 1 FOR UPDATE SKIP LOCKED
    ) AS c ORDER BY c.rank, c.seq LIMIT 1
), {_CLOCK}
UPDATE comfyd_task AS t SET state = 'FETCHED', {_GRANT}, token = $4, holder = $5, target_port =
    (SELECT port FROM unnest($6::text[], $7::int[]) AS x(environment, port) WHERE x.environment = t.environment),
    started_at = NULL, slot = NULL, generation = NULL, instance = NULL, prompt_id = NULL
FROM best AS b CROSS JOIN clock WHERE t.seq = b.seq RETURNING {_T_COLUMNS}"""
_OF_ENVIRONMENT: Final = _FETCH.format(and_="")
_OF_WORKFLOW: Final = _FETCH.format(and_="AND workflow_name = place.workflow")
_QUEUED: Final = """
WITH RECURSIVE hop AS (
    (SELECT environment FROM comfyd_task WHERE state = 'PENDING' ORDER BY environment LIMIT 1)
    UNION ALL
    SELECT (SELECT environment FROM comfyd_task WHERE state = 'PENDING' AND environment > hop.environment
            ORDER BY environment LIMIT 1) FROM hop WHERE hop.environment IS NOT NULL
) SELECT environment FROM hop WHERE environment IS NOT NULL"""
_GRANTED: Final = f"SELECT {COLUMNS} FROM comfyd_task WHERE token = ANY ($1::text[]) AND node_id = $2"
_OF_NODE: Final = (
    f"SELECT {COLUMNS}, {SERVER_MS} AS server_ms FROM comfyd_task WHERE token IS NOT NULL AND node_id = $1 "
    "AND prompt_id IS NOT NULL AND state IN ('PROCESSING', 'PENDING') ORDER BY rank, seq FOR UPDATE"
)


class Wish(NamedTuple):
    """Room for one task. Token and prompt id are chosen before anything is sent, so that it can be asked later whether
    a claim whose answer was lost was stored."""

    slot: Slot
    token: str
    prompt_id: str


def wishes_for(slots: Sequence[Slot]) -> list[Wish]:
    return [Wish(slot, secrets.token_hex(16), str(uuid4())) for slot in slots]


async def settle_due(db: Connection, draft: Draft, wall: float) -> None:
    """Everything that happens by itself once its time has come by the server's clock; written."""
    await _take_back(db, draft, wall)
    for record in await db.fetch(_MISSED):
        row = row_of(record)
        miss(draft, row, clock_of(row.pop("server_ms"), wall))
    await draft.write(db)
    ripe = await db.fetch(_RIPENED)
    if ripe:
        found = await db.fetch(_TOPS, list({row["lane"] for row in ripe}))
        tops = {record["lane"]: record["rank"] for record in found}
        placed = ranked(ripe, tops, lambda row: str(row["lane"]))
        await db.execute(_RANK, [row["seq"] for row, _ in placed], [rank for _, rank in placed])


async def _take_back(db: Connection, draft: Draft, wall: float) -> None:
    """Return tasks whose lease ran out to the queue, and write it."""
    for record in await db.fetch(_EXPIRED):
        row = row_of(record)
        lapse(draft, row, clock_of(row.pop("server_ms"), wall))
    await draft.write(db)


async def claim(
    db: Connection, draft: Draft, wishes: Sequence[Wish], term: tuple[int, str], wall: float, limits: Limits
) -> list[TaskRow]:
    """Fill each wish with the best queued task of its environment that the limits allow. term: (lease in ms, node id).
    In a transaction if an environment has limits."""
    free = [wish for wish in wishes if wish.slot.environment not in limits]
    bound = [wish for wish in wishes if wish.slot.environment in limits]
    rows = await _claim(db, free, term) if free else []
    if bound:
        rows += await _claim_within(db, bound, term, limits)
    rows = _in_order(rows, [wish.token for wish in wishes])
    for row in rows:
        _tell(draft, row, TaskState.PROCESSING, wall)
    return rows


async def _claim(
    db: Connection, wishes: Sequence[Wish], term: tuple[int, str], workflows: Sequence[str] | None = None
) -> list[TaskRow]:
    """workflows: for a single wish, those that are allowed."""
    slots = [wish.slot for wish in wishes]
    records = await db.fetch(
        _CLAIM_ANY if workflows is None else _CLAIM_SOME,
        *term,
        [slot.environment for slot in slots],
        [slot.key for slot in slots],
        [slot.generation for slot in slots],
        [slot.instance for slot in slots],
        [slot.port for slot in slots],
        [wish.prompt_id for wish in wishes],
        [wish.token for wish in wishes],
        *(() if workflows is None else (workflows,)),
    )
    return [row_of(record) for record in records]


async def _claim_within(db: Connection, wishes: Sequence[Wish], term: tuple[int, str], limits: Limits) -> list[TaskRow]:
    left = await postgres_limits.room(db, limits, [wish.slot.environment for wish in wishes])
    rows: list[TaskRow] = []
    for wish in wishes:
        environment = wish.slot.environment
        if left.left(environment) <= 0:
            continue
        full, names = left.full(environment), None
        if full:
            names = [name for name in await postgres_limits.queued_workflows(db) if name not in full]
        for row in await _claim(db, [wish], term, names):
            left.take(environment, row["workflow_name"])
            rows.append(row)
    return rows


async def fetch(
    db: Connection,
    draft: Draft,
    names: tuple[Sequence[str] | None, Sequence[str] | None],
    targets: Mapping[str, int],
    grant: tuple[int, str, str, str],
    wall: float,
    limits: Limits,
) -> TaskRow | None:
    """names: (workflows, environments). grant: (lease in ms, node id, token, caller). In a transaction if there are
    limits."""
    lease_ms, node_id, token, caller = grant
    workflows, environments = (None if n is None else sorted({x for x in n if storable_name(x)}) for n in names)
    if environments is None:
        environments = [record["environment"] for record in await db.fetch(_QUEUED)]
    left = await postgres_limits.room(db, limits, environments)
    if workflows is None and any(left.full(name) for name in environments):
        workflows = await postgres_limits.queued_workflows(db)
    allowed = places(left, environments, workflows, ())
    if not allowed:
        return None
    record = await db.fetchrow(
        _OF_ENVIRONMENT if workflows is None else _OF_WORKFLOW,
        lease_ms, node_id, [place[0] for place in allowed], token, caller, list(targets), list(targets.values()),
        [place[1] for place in allowed],
    )  # fmt: skip
    if record is None:
        return None
    row = row_of(record)
    _tell(draft, row, TaskState.FETCHED, wall)
    return row


async def granted(db: Connection, tokens: Sequence[str], node_id: str) -> list[TaskRow]:
    """What an earlier try whose answer was lost has leased with these tokens."""
    records = await db.fetch(_GRANTED, list(tokens), node_id)
    return _in_order(map(row_of, records), tokens)


def _in_order(rows: Iterable[TaskRow], tokens: Sequence[str]) -> list[TaskRow]:
    """As the tokens stand: the best task belongs to the first."""
    order = {token: n for n, token in enumerate(tokens)}
    return sorted(rows, key=lambda row: order[row["token"]])


async def recover(db: Connection, draft: Draft, node_id: str, lease_s: float, wall: float) -> list[TaskRow]:
    """Re-token this node's prompts, also those whose lease ran out while the daemon was away."""
    found = []
    for record in await db.fetch(_OF_NODE, node_id):
        row = row_of(record)
        clock = clock_of(row.pop("server_ms"), wall)
        found.append(retake(draft, row, Term.after(clock, lease_s), clock))
    await draft.write(db)
    return found


def _tell(draft: Draft, row: TaskRow, to: TaskState, wall: float) -> None:
    data: dict[str, Any] = {"from": "PENDING", "to": to.value, "workflow": row["workflow_name"]}
    draft.note("task", row["task_id"], {**data, "instance": row["instance"], "message": None}, wall)
