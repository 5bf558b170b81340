"""What must hold of a finished run, as pure functions over what it left: the database, the stand-ins' journal."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

ENDS = frozenset({"COMPLETED", "FAILED", "CANCELLED"})


def read_database(path: Path, question: str, *given: object) -> list[tuple[object, ...]]:
    """Through a connection that cannot write, so that it may also be asked while the daemon lives."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as db:
        return [tuple(row) for row in db.execute(question, given)]


def check_database(path: Path) -> None:
    """Whole (V10), nothing leased and nothing open at rest (V6), no gap in the event log (V14)."""
    assert read_database(path, "PRAGMA integrity_check") == [("ok",)]
    states = {str(state) for (state,) in read_database(path, "SELECT DISTINCT state FROM task")}
    assert states <= ENDS, states
    assert read_database(path, "SELECT task_id FROM task WHERE lease_mono IS NOT NULL") == []
    (count, first, last), *_ = read_database(path, "SELECT count(*), min(seq), max(seq) FROM event")
    assert isinstance(last, int)
    assert isinstance(first, int)
    assert count == last - first + 1
    doubled = "SELECT idempotency_key FROM task WHERE idempotency_key IS NOT NULL GROUP BY 1 HAVING count(*) > 1"
    assert read_database(path, doubled) == []


def given_twice(path: Path) -> list[tuple[int, str]]:
    """(pid, prompt) of every prompt that one process was given or ran more than once (V9)."""
    if not path.exists():
        return []
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    found = []
    for event in ("accepted", "executed"):
        given = Counter((e["pid"], e["prompt_id"]) for e in entries if e["event"] == event)
        found += [one for one, times in given.items() if times > 1]
    return found


def check_journal(path: Path) -> None:
    assert given_twice(path) == []
