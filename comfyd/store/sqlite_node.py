"""NodeStore on the embedded database: overrides, the event log, small facts, the node's id."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import uuid4

from comfyd.failpoint import failpoint
from comfyd.model.desired import Override
from comfyd.model.task import Event
from comfyd.store.ledger import Transaction, dump, from_json
from comfyd.store.protocol import Noted
from comfyd.store.writer import Writer

_EVENTS = "SELECT seq, at, type, subject, data FROM event WHERE seq > ? ORDER BY seq LIMIT ?"
_PUT_OVERRIDE = (
    "INSERT INTO override (kind, key, body) VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body"
)
_DELETE_OVERRIDES = (
    "DELETE FROM override WHERE (?1 IS NULL OR key = ?1) AND (?2 IS NULL OR kind IN (SELECT value FROM json_each(?2)))"
)
_PUT_FACT = "INSERT INTO fact (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


def _override_saved(_: None) -> None:
    failpoint("override_saved")


def own_node_id(tx: Transaction) -> str:
    """Read the node's id; make it at the first open."""
    tx.db.execute("INSERT INTO meta (key, value) VALUES ('node_id', ?) ON CONFLICT DO NOTHING", (uuid4().hex,))
    return str(tx.db.execute("SELECT value FROM meta WHERE key = 'node_id'").fetchone()[0])


class SqliteNode:
    def __init__(self, writer: Writer, node_id: str) -> None:
        self._writer = writer
        self._node_id = node_id

    @property
    def node_id(self) -> str:
        return self._node_id

    async def overrides(self) -> tuple[Override, ...]:
        """Sorted by kind and key."""

        def run(db: sqlite3.Connection) -> tuple[Override, ...]:
            rows = db.execute("SELECT body FROM override ORDER BY kind, key")
            return tuple(Override.model_validate_json(row["body"]) for row in rows)

        return await self._writer.read(run)

    async def put_overrides(self, overrides: Sequence[Override], instead_of: Collection[tuple[str, str]] = ()) -> None:
        rows = [(one.kind, one.key, one.model_dump_json()) for one in overrides]

        def run(tx: Transaction) -> None:
            tx.db.executemany("DELETE FROM override WHERE kind = ? AND key = ?", instead_of)
            tx.db.executemany(_PUT_OVERRIDE, rows)

        await self._writer.write(run, after=_override_saved)

    async def delete_overrides(self, key: str | None = None, kinds: Collection[str] = ()) -> int:
        chosen = (key, dump(list(kinds)) if kinds else None)
        return await self._writer.write(lambda tx: tx.db.execute(_DELETE_OVERRIDES, chosen).rowcount)

    async def append_event(self, type_: str, subject: str, data: Mapping[str, Any], wall: float) -> Event:
        return await self._writer.write(lambda tx: tx.event(type_, subject, data, wall))

    async def events(self, after: int, limit: int = 500) -> tuple[Event, ...]:
        def run(db: sqlite3.Connection) -> tuple[Event, ...]:
            return tuple(
                Event(
                    seq=row["seq"],
                    at=row["at"],
                    type=row["type"],
                    subject=row["subject"],
                    data=from_json(row["data"]),
                )
                for row in db.execute(_EVENTS, (after, limit))
            )

        return await self._writer.read(run)

    async def last_event(self) -> int:
        return self._writer.last_event

    async def wait_events(self, after: int) -> None:
        await self._writer.wait_event(after)

    async def facts(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        def run(db: sqlite3.Connection) -> dict[str, dict[str, Any]]:
            rows = db.execute(
                "SELECT key, value FROM fact WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key", (prefix,)
            )
            return {row["key"]: from_json(row["value"]) for row in rows}

        return await self._writer.read(run)

    async def put_fact(self, key: str, value: Mapping[str, Any]) -> None:
        text = dump(value)
        await self._writer.write(lambda tx: tx.db.execute(_PUT_FACT, (key, text)).rowcount)

    async def note(self, facts: Mapping[str, Mapping[str, Any]], events: Sequence[Noted] = ()) -> None:
        rows = [(key, dump(value)) for key, value in facts.items()]

        def run(tx: Transaction) -> None:
            tx.db.executemany(_PUT_FACT, rows)
            for event in events:
                tx.event(*event)

        await self._writer.write(run)

    async def delete_fact(self, key: str) -> None:
        await self._writer.write(lambda tx: tx.db.execute("DELETE FROM fact WHERE key = ?", (key,)).rowcount)
