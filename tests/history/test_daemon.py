"""A real daemon that is killed again and again, under clients old and new: their history, its database and the
journal of the stand-ins are judged, on either engine. Instances are killed as well and, with a shared queue, the
connections to it. SEED repeats a run as far as timing allows; TIER=heavy kills 40 times.
"""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.daemon import Daemon, add_environment, make_root, running_daemon
from tests.history import final, record
from tests.history.checker import check
from tests.history.http import Client, Creator, Known, Operator, Reader
from tests.history.old_worker import FETCH_LEASE_S, EnvelopeWorker, OldWorker, TokenWorker
from tests.history.record import Record
from tests.ports import free_port
from tests.postgres import Server

KILLS = 40 if os.environ.get("TIER") == "heavy" else 4
KINDS: Sequence[tuple[type[Client], str]] = (
    (Creator, ""), (Creator, ""), (Operator, ""), (Reader, ""),
    (OldWorker, "127.0.0.2"), (EnvelopeWorker, "127.0.0.3"), (TokenWorker, "127.0.0.4"),
)  # fmt: skip


@contextmanager
def running(clients: Sequence[Client], known: Known) -> Iterator[None]:
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        known.over.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def kill_an_instance(daemon: Daemon, dice: random.Random) -> None:
    pid = dice.choice(sorted(daemon.pids().values()) or [0])
    with suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGKILL)


async def cut(url: str) -> int:
    """Every connection of the daemon to its queue. Returns how many there were."""
    db = await asyncpg.connect(url, timeout=30)
    try:
        text = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'comfyd'"
        return int(await db.fetchval(text))
    finally:
        await db.close()


def kill_again_and_again(daemon: Daemon, dice: random.Random, known: Known, url: str | None) -> int:
    """Returns how many connections were cut."""
    cuts = 0
    for _ in range(KILLS):
        for _ in range(3):
            time.sleep(dice.uniform(0.2, 1.0))
            cuts += asyncio.run(cut(url)) if url else 0
        if dice.random() < 0.5:
            kill_an_instance(daemon, dice)
        time.sleep(dice.uniform(0.0, 0.5))
        daemon.kill()
        known.up.clear()
        time.sleep(dice.choice([0, 0, 0.5, FETCH_LEASE_S]))
        daemon.start(timeout_s=60)
        known.up.set()
    return cuts


def run_dry(daemon: Daemon, last: OldWorker) -> None:
    """Let everything end: outside tasks by a worker that never fails."""
    last.hasty = True

    def dry() -> bool:
        last.step()
        stats = daemon.get("/api/stats")["stats"]
        return not stats["pending"] + stats["fetched"] + stats["processing"]

    daemon.until(dry, 90, "every task ended")


@pytest.mark.reliability
@pytest.mark.timeout(300 + 30 * KILLS)
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_no_task_is_lost_or_doubled_by_kills(tmp_path: Path, request: pytest.FixtureRequest, engine: str) -> None:
    server: Server | None = request.getfixturevalue("postgres_server") if engine == "postgres" else None
    url = server.url() if server else None
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"SEED={seed}")
    dice, known, journal, folder = random.Random(seed), Known(), tmp_path / "journal.jsonl", tmp_path / "history"
    folder.mkdir()
    root = make_root(tmp_path / "root")
    add_environment(root, "outside", workflows=["elsewhere"], dispatch="external", port=free_port())
    environ = {
        "FAKE_COMFYUI_JOURNAL": str(journal), "FAKE_COMFYUI_DROP_WS": "80", "FAKE_COMFYUI_CRASH_ON_PROMPT": "30",
        "COMFYD_FETCH_LEASE_S": str(FETCH_LEASE_S), "COMFYD_LEASE_S": "6",
        **({"COMFYD_DATABASE_URL": url} if url else {}),
    }  # fmt: skip
    with running_daemon(root, **environ) as daemon:
        daemon.until_ready(0, 1)

        def client(kind: type[Any], name: str, address: str = "") -> Any:
            return kind(daemon, known, folder, name, dice.randrange(2**32), address)

        clients = [client(kind, f"{kind.__name__.lower()}{n}", at) for n, (kind, at) in enumerate(KINDS)]
        with running(clients, known):
            cuts = kill_again_and_again(daemon, dice, known, url)
        run_dry(daemon, client(OldWorker, "last", "127.0.0.5"))
        audit = client(Reader, "audit")
        for task in known.tasks:
            audit.look(task)
        assert daemon.stop() == 0
    database, records = root / "workspace/.comfyd/comfyd.db", record.read(folder)
    left = asyncio.run(final.read_shared(url, {"node": database})) if url else final.read(database)
    assert bool(cuts) == bool(url)
    found = check(records, left, [json.loads(line) for line in journal.read_text().splitlines()])
    assert not found, "\n".join(map(str, found[:5]))
    assert known.wrong == []
    assert_eventful(records, left)


def assert_eventful(records: Sequence[Record], left: final.Final) -> None:
    """A history in which nothing happens proves nothing."""
    ends = Counter((row.state, row.workflow) for row in left.rows)
    answers = Counter((one.op, "done" if one.done else one.error or "timeout") for one in records)
    print(dict(ends), dict(answers))
    assert ends["COMPLETED", "invert"]
    assert ends["COMPLETED", "elsewhere"]
    assert answers["create", "timeout"] + answers["update", "timeout"] + answers["get", "timeout"]
