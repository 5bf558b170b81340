"""The embedded engine against kill -9, damage, a newer schema, other processes and failing disks."""

import asyncio
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from comfyd.errors import StoreError
from comfyd.model.task import TaskState
from comfyd.store.database import schemas
from comfyd.store.open import open_stores
from tests.store.engines import LEASE_S, SqliteEngine, claim_one, enqueue, new, slot

pytestmark = pytest.mark.asyncio
ROOT = Path(__file__).parents[2]

WRITER = """
import asyncio, sys
from pathlib import Path
from tests.store.engines import DONE, LEASE_S, SqliteEngine, new, slot

async def main():
    engine = SqliteEngine(Path(sys.argv[1]))
    async with engine.open() as stores:
        async def create():
            while True:
                task, _ = await stores.tasks.enqueue(new(), engine.now())
                sys.stdout.write(f"created {task.task_id}\\n")
                sys.stdout.flush()
        async def work(n):
            while True:
                for claim in await stores.tasks.claim([slot(n)], LEASE_S, engine.now()):
                    await stores.tasks.finish(claim.lease, DONE, engine.now())
                    sys.stdout.write(f"finished {claim.task.task_id}\\n")
                    sys.stdout.flush()
        await asyncio.gather(*(create() for _ in range(8)), *(work(n) for n in range(2)))
asyncio.run(main())
"""


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


def child(*args: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *args],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize("lines", [1, 150, 900])
async def test_kill_9_loses_nothing_acknowledged(sqlite: SqliteEngine, tmp_path: Path, lines: int) -> None:
    process = child("-c", WRITER, str(tmp_path))
    assert process.stdout is not None
    told = [await asyncio.to_thread(process.stdout.readline) for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=20)
    told += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    async with sqlite.open() as stores:
        assert stores.recovered_from is None
        assert await stores.writer.read(lambda db: db.execute("PRAGMA integrity_check").fetchone()[0]) == "ok"
        for line in told:
            what, task_id = line.split()
            task = await stores.tasks.get(task_id)
            assert what == "created" or task.status is TaskState.COMPLETED
        events = await stores.node.events(0, 100_000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        counted = await stores.writer.read(
            lambda db: dict(db.execute("SELECT state, count(*) FROM task GROUP BY state").fetchall())
        )
        stats = (await stores.tasks.stats()).model_dump()
        assert {state: stats[state.lower()] for state in counted} == counted


@pytest.mark.parametrize("name", ["enqueue_before_commit", "enqueue_after_commit", "migration_n"])
async def test_kill_9_at_a_step(sqlite: SqliteEngine, tmp_path: Path, name: str) -> None:
    process = child("-c", WRITER, str(tmp_path), env={"COMFYD_FAILPOINT": f"{name}=kill"})
    out, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert out == ""
    async with sqlite.open() as stores:
        stats = await stores.tasks.stats()
        assert stats.total == 0 if name != "enqueue_after_commit" else stats.total >= 1
        await enqueue(stores, sqlite)


def flip(database: Path) -> None:
    data = bytearray(database.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 200] = os.urandom(200)
    database.write_bytes(data)


def tear(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2 + 100)


def overwrite(database: Path) -> None:
    database.write_bytes(b"this is no database, " * 500)


@pytest.mark.parametrize("damage", [flip, tear, overwrite])
async def test_a_damaged_file_is_set_aside_whole(sqlite: SqliteEngine, damage: object) -> None:
    async with sqlite.open() as stores:
        await asyncio.gather(*(stores.tasks.enqueue(new(), sqlite.now()) for _ in range(200)))
        node_id = stores.node.node_id
    damage(sqlite.database)  # type: ignore[operator]
    log = sqlite.database.with_name("comfyd.db-wal")
    log.write_bytes(b"left over")
    content = sqlite.database.read_bytes()
    async with sqlite.open() as stores:
        aside = stores.recovered_from
        assert aside is not None
        assert aside.name.startswith("comfyd.db.corrupt-")
        assert aside.read_bytes() == content
        assert aside.with_name(aside.name + "-wal").read_bytes() == b"left over"
        assert (await stores.tasks.stats()).total == 0
        assert stores.node.node_id != node_id
        await enqueue(stores, sqlite)
    async with sqlite.open() as stores:
        assert stores.recovered_from is None
        assert (await stores.tasks.stats()).total == 1
    assert stat.S_IMODE(sqlite.database.stat().st_mode) == 0o600


async def test_a_newer_schema_is_refused_and_left_alone(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        await enqueue(stores, sqlite)
    db = sqlite3.connect(sqlite.database)
    db.execute(f"PRAGMA user_version = {len(schemas()) + 1}")
    db.close()
    before = sqlite.database.read_bytes()
    with pytest.raises(StoreError) as caught:
        async with sqlite.open():
            pass
    assert (caught.value.code, caught.value.retryable) == ("store_corrupt", False)
    assert "newer comfyd" in caught.value.message
    assert sqlite.database.read_bytes() == before
    assert [p.name for p in sqlite.database.parent.iterdir() if "corrupt" in p.name] == []


async def test_a_newer_schema_that_is_only_in_the_log_is_seen(sqlite: SqliteEngine) -> None:
    async with sqlite.open():
        pass
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA user_version = 99'); "
        "os.kill(os.getpid(), 9)"
    )
    process = child("-c", code, str(sqlite.database))
    process.communicate(timeout=20)
    before = sqlite.database.read_bytes()
    with pytest.raises(StoreError, match="schema 99"):
        async with sqlite.open():
            pass
    assert sqlite.database.read_bytes() == before


LOCKER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


async def test_locked_by_another_process_acknowledges_nothing(sqlite: SqliteEngine) -> None:
    async with open_stores(sqlite.database, "boot-1", 100, busy_timeout_s=0.2) as stores:
        first = await enqueue(stores, sqlite)
        process = subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(sqlite.database)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "locked\n"
        results = await asyncio.gather(
            *(stores.tasks.enqueue(new(), sqlite.now()) for _ in range(5)), return_exceptions=True
        )
        for result in results:
            assert isinstance(result, StoreError)
            assert (result.code, result.retryable) == ("store_unavailable", True)
            assert "Another process" in result.message
        assert (await stores.tasks.get(first)).status is TaskState.PENDING
        process.communicate("", timeout=10)
        claim = await claim_one(stores, sqlite)
        assert claim.task.task_id == first
        assert (await stores.tasks.stats()).total == 1


async def test_a_disk_error_fails_the_batch_then_the_content_is_checked_and_used_again(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        first = await enqueue(stores, sqlite)
        log = sqlite.database.with_name("comfyd.db-wal")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 1000, hard))
        try:
            with pytest.raises(StoreError) as caught:
                await enqueue(stores, sqlite)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.retryable
        assert (await stores.tasks.stats()).total == 1
        await enqueue(stores, sqlite)
        assert (await claim_one(stores, sqlite)).task.task_id == first
    async with sqlite.open() as stores:
        assert stores.recovered_from is None
        assert (await stores.tasks.stats()).total == 2


async def test_damage_seen_while_running_refuses_until_the_next_boot(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        await asyncio.gather(*(stores.tasks.enqueue(new(), sqlite.now()) for _ in range(200)))
        await stores.writer.read(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
        flip(sqlite.database)
        codes = set()
        for _ in range(3):
            await stores.writer.read(lambda db: db.execute("PRAGMA cache_size = 0").fetchone())
            results = await asyncio.gather(
                stores.tasks.claim([slot()], LEASE_S, sqlite.now()),
                stores.tasks.enqueue(new(), sqlite.now()),
                stores.writer.read(lambda db: db.execute("SELECT count(json) FROM task_params").fetchone()),
                return_exceptions=True,
            )
            codes |= {getattr(result, "code", None) for result in results}
            if codes >= {"store_corrupt"}:
                break
        with pytest.raises(StoreError) as caught:
            await stores.tasks.stats()
        assert caught.value.code == "store_corrupt"
    async with sqlite.open() as stores:
        assert stores.recovered_from is not None


async def test_only_the_owner_can_read_it(sqlite: SqliteEngine) -> None:
    sqlite.database.parent.mkdir(mode=0o755)
    sqlite.database.touch(0o644)
    old = os.umask(0)
    try:
        async with sqlite.open() as stores:
            await enqueue(stores, sqlite)
            files = list(sqlite.database.parent.iterdir())
            assert {p.name for p in files} == {"comfyd.db", "comfyd.db-wal", "comfyd.db-shm"}
            assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}
            assert stat.S_IMODE(sqlite.database.parent.stat().st_mode) == 0o700
    finally:
        os.umask(old)


async def test_a_link_in_the_place_of_the_database_is_not_followed(sqlite: SqliteEngine, tmp_path: Path) -> None:
    sqlite.database.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    sqlite.database.symlink_to(victim)
    with pytest.raises(StoreError) as caught:
        async with sqlite.open():
            pass
    assert caught.value.code == "store_unavailable"
    assert victim.read_text() == "precious"


async def test_schemas_are_numbered_without_gaps() -> None:
    folder = ROOT / "comfyd" / "store" / "schema"
    names = sorted(path.name[:4] for path in folder.glob("*.sql"))
    assert names == [f"{n:04d}" for n in range(1, len(names) + 1)]
    assert len(schemas()) == len(names)
