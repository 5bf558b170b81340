"""What a run left behind: the rows and events of the database. Read after the daemon or the store has ended."""

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COLUMNS = (
    "task_id, state, workflow_name, attempts, max_attempts, idempotency_key, callback_url, prompt_id, output, "
    "(SELECT json FROM task_params WHERE task_params.seq = task.seq) AS params"
)


@dataclass(frozen=True, slots=True)
class Row:
    task_id: str
    state: str
    workflow: str = ""
    attempts: int = 1
    max_attempts: int = 3
    idempotency_key: str | None = None
    callback_url: str | None = None
    prompt_id: str | None = None
    output: Any = None
    params: Any = None


@dataclass(frozen=True, slots=True)
class Event:
    seq: int
    type: str
    subject: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Final:
    """integrity: what PRAGMA integrity_check says."""

    rows: tuple[Row, ...] = ()
    events: tuple[Event, ...] = ()
    integrity: str = "ok"


def read(database: Path) -> Final:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        integrity = db.execute("PRAGMA integrity_check").fetchone()[0]
        rows = [
            Row(*plain, *(None if text is None else json.loads(text) for text in (output, params)))
            for *plain, output, params in db.execute(f"SELECT {_COLUMNS} FROM task ORDER BY seq")
        ]
        events = [
            Event(seq, kind, subject, json.loads(data))
            for seq, kind, subject, data in db.execute("SELECT seq, type, subject, data FROM event ORDER BY seq")
        ]
    return Final(tuple(rows), tuple(events), str(integrity))
