"""The server is lost for good and its standby takes over (G2); a node is cut off from it while it lives (G4)."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from comfyd.errors import ComfydError, StoreError
from comfyd.model.task import TaskState
from comfyd.store.open import Shared, Stores, open_stores
from tests.postgres import PORT, Server, running_server, running_standby
from tests.store.engines import DONE, PostgresEngine, claim_one, enqueue, slot

pytestmark = [pytest.mark.asyncio, pytest.mark.postgres, pytest.mark.timeout(300)]
RESUME_S = 10.0
BUSY_S = 10.0
DURABLE = {"fsync": "on", "synchronous_commit": "on", "wal_level": "replica"}


@contextmanager
def pair(**settings: str) -> Iterator[tuple[Server, Server]]:
    with running_server(**DURABLE) as primary, running_standby(primary, **DURABLE) as standby:
        if settings:
            primary.stop()
            primary.start(**DURABLE, **settings)
        yield primary, standby


@asynccontextmanager
async def opened(postgres: PostgresEngine, url: str, seen: list[str]) -> AsyncIterator[Stores]:
    shared = Shared(url, postgres._woken, postgres.troubles.append, seen.append)
    async with open_stores(postgres.database, "boot", 100_000, shared=shared) as stores:
        yield stores


def either(postgres: PostgresEngine, primary: Server, standby: Server) -> str:
    return postgres.url.replace(f"host={primary.folder}&port={PORT}",
                                f"host={primary.folder},{standby.folder}&port={PORT},{PORT}")  # fmt: skip


async def test_no_acknowledged_task_is_lost_with_a_synchronous_standby(tmp_path: Path) -> None:
    with pair(synchronous_standby_names="*") as (primary, standby):
        postgres, seen = PostgresEngine(tmp_path, primary), list[str]()
        await postgres.prepare(still=False)
        async with opened(postgres, either(postgres, primary, standby), seen) as stores:
            told = [await enqueue(stores, postgres)]
            claim, ended = await claim_one(stores, postgres), asyncio.Event()
            assert seen[-1] == "sync"

            async def create() -> None:
                while not ended.is_set():
                    with contextlib.suppress(StoreError):
                        told.append(await enqueue(stores, postgres))

            creators = [asyncio.ensure_future(create()) for _ in range(4)]
            while len(told) < 200:
                await asyncio.sleep(0.01)
            primary.stop(signal.SIGKILL)
            before, begun = len(told), time.monotonic()
            await asyncio.to_thread(standby.promote)
            while len(told) <= before + len(creators):  # more than what was on its way
                assert time.monotonic() - begun < RESUME_S + BUSY_S
                await asyncio.sleep(0.01)
            print(f"resumed after {time.monotonic() - begun:.1f} s, {before} acknowledged before")
            ended.set()
            await asyncio.gather(*creators)
            assert (await stores.tasks.finish(claim.lease, DONE, postgres.now())).status is TaskState.COMPLETED
            for task in told:
                assert (await stores.tasks.get(task)).task_id == task
            assert len(set(told)) == len(told)


async def test_a_server_that_does_not_wait_for_its_standby_is_shown(tmp_path: Path) -> None:
    with pair() as (primary, standby):
        postgres, seen = PostgresEngine(tmp_path, primary), list[str]()
        await postgres.prepare(still=False)
        async with opened(postgres, either(postgres, primary, standby), seen) as stores:
            await enqueue(stores, postgres)
            while not seen:
                await asyncio.sleep(0.01)
            assert set(seen) == {"async"}


class Wire:
    """Between a node and the server: what is sent into it is lost while it is cut, and neither side hears of it."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self._to = server.folder / f".s.PGSQL.{PORT}"
        self.whole = asyncio.Event()
        self.whole.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._accept, self.folder / f".s.PGSQL.{PORT}")
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.whole.wait()
        there, back = await asyncio.open_unix_connection(self._to)
        for source, sink in ((reader, back), (there, writer)):
            self._tasks.add(asyncio.ensure_future(self._carry(source, sink)))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self.whole.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


async def test_a_node_that_is_cut_off_loses_its_leases_and_its_late_results_are_refused(
    postgres_server: Server, tmp_path: Path
) -> None:
    other = PostgresEngine(tmp_path / "other", postgres_server)
    await other.prepare(still=False)
    wire = Wire(Path(tmp_path / "w"), postgres_server)
    wire.folder.mkdir()
    url = other.url.replace(f"host={postgres_server.folder}", f"host={wire.folder}")
    cut = PostgresEngine(tmp_path / "cut", postgres_server)
    async with wire.open(), opened(cut, url, []) as lone, opened(other, other.url, []) as rest:
        task = await enqueue(lone, cut)
        (claim,) = await lone.tasks.claim([slot(0)], 2.0, cut.now())
        wire.whole.clear()
        for call in (lone.tasks.renew(claim.lease, 60, cut.now()), lone.tasks.claim([slot(1)], 60, cut.now())):
            with pytest.raises(StoreError) as refused:
                await call
            assert refused.value.retryable
        deadline, found = time.monotonic() + 2 + BUSY_S, ()
        while not found:  # by the server's clock: that of the engines stands still
            assert time.monotonic() < deadline
            found = await rest.tasks.claim([slot(0)], 60, other.now())  # type: ignore[assignment]
            await asyncio.sleep(0.02)
        assert found[0].task.task_id == task  # type: ignore[unreachable]
        wire.whole.set()
        begun = time.monotonic()
        while True:
            with contextlib.suppress(StoreError):
                await lone.tasks.stats()
                break
            assert time.monotonic() - begun < 5 + BUSY_S
            await asyncio.sleep(0.02)
        with pytest.raises(ComfydError) as late:
            await lone.tasks.finish(claim.lease, DONE, cut.now())
        assert late.value.code == "stale_lease"
        done = await rest.tasks.finish(found[0].lease, DONE, other.now())
        assert (done.status, done.attempts) == (TaskState.COMPLETED, 2)
