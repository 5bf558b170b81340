"""What a run left behind: rows and events, of one database or of a shared queue and the nodes around it.

Read after the daemons or the stores have ended.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg

_COLUMNS = (
    "task_id, state, workflow_name, attempts, max_attempts, attempts + infra_losses + crashes AS grants, "
    "idempotency_key, callback_url, prompt_id, output, "
)
_EMBEDDED = f"SELECT {_COLUMNS}(SELECT json FROM task_params WHERE task_params.seq = task.seq) FROM task ORDER BY seq"
_SHARED = f"SELECT {_COLUMNS}params FROM comfyd_task ORDER BY seq"
_COUNTED = (
    "SELECT environment, workflow_name, state, sum(n)::bigint FROM comfyd_tally GROUP BY 1, 2, 3 HAVING sum(n) <> 0"
)
_COUNT = "SELECT environment, workflow_name, state, count(*) FROM comfyd_task GROUP BY 1, 2, 3"


@dataclass(frozen=True, slots=True)
class Row:
    """grants: leases handed out since it was made or retried by hand."""

    task_id: str
    state: str
    workflow: str = ""
    attempts: int = 1
    max_attempts: int = 3
    grants: int = 1
    idempotency_key: str | None = None
    callback_url: str | None = None
    prompt_id: str | None = None
    output: Any = None
    params: Any = None


@dataclass(frozen=True, slots=True)
class Event:
    """node: in whose log it stands; numbers are the log's."""

    seq: int
    type: str
    subject: str
    data: dict[str, Any] = field(default_factory=dict)
    node: str = ""


@dataclass(frozen=True, slots=True)
class Final:
    """integrity: what PRAGMA integrity_check says; of a shared queue, whether its counts are those of its rows.

    shared: the events of a task are told by whichever node moved it, and one that dies before telling never does.
    """

    rows: tuple[Row, ...] = ()
    events: tuple[Event, ...] = ()
    integrity: str = "ok"
    shared: bool = False


def read(database: Path) -> Final:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        integrity = db.execute("PRAGMA integrity_check").fetchone()[0]
        rows = [_row(*found) for found in db.execute(_EMBEDDED)]
        events = [
            Event(seq, kind, subject, json.loads(data))
            for seq, kind, subject, data in db.execute("SELECT seq, type, subject, data FROM event ORDER BY seq")
        ]
    return Final(tuple(rows), tuple(events), str(integrity))


async def read_shared(url: str, nodes: Mapping[str, Path]) -> Final:
    """nodes: name -> database of each."""
    logs = {name: read(database) for name, database in nodes.items()}
    db = await asyncpg.connect(url, timeout=30)
    try:
        rows = [_row(*found) for found in await db.fetch(_SHARED)]
        counted, counts = [
            {(row[0], row[1], row[2]): row[3] for row in await db.fetch(text)} for text in (_COUNTED, _COUNT)
        ]
    finally:
        await db.close()
    wrong = [log.integrity for log in logs.values() if log.integrity != "ok"]
    if counted != counts:
        wrong.append(f"counted {counted}, there are {counts}")
    events = [replace(event, node=name) for name, log in logs.items() for event in log.events]
    return Final(tuple(rows), tuple(events), "; ".join(wrong) or "ok", True)


def _row(*found: Any) -> Row:
    *plain, output, params = found
    return Row(*plain, *(None if text is None else json.loads(text) for text in (output, params)))
