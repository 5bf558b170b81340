"""The watchers see what they are there for."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from comfyd.store.database import connect
from tests.ports import free_port
from tests.reliability.checks import check_database, check_journal
from tests.reliability.decoys import Decoys
from tests.reliability.model import Entry, Facts, Model
from tests.reliability.sampler import Sampler


@contextmanager
def twins(folder: Path, port: int) -> Iterator[Callable[[], None]]:
    """Each call starts one more process that looks like instance 0 and listens on the port."""
    code = f"import socket,time; s=socket.socket(); s.setsockopt(1,15,1); s.bind(('127.0.0.1',{port})); s.listen(); "
    argv = [sys.executable, "-c", code + "print(flush=True); time.sleep(600)", "data/instances/0"]
    begun: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        environ = {**os.environ, "COMFYD_PROCESS_UUID": "ab"[len(begun)] * 32}
        begun.append(subprocess.Popen(argv, cwd=folder, env=environ, stdout=subprocess.PIPE))
        assert begun[-1].stdout is not None
        assert begun[-1].stdout.readline() == b"\n"

    try:
        yield start
    finally:
        for one in begun:
            one.kill()
            one.wait(10)
            assert one.stdout is not None
            one.stdout.close()


def test_the_sampler_sees_two_trees_of_a_key_and_two_listeners_of_a_port(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, frozenset([port := free_port()]))
    with twins(tmp_path, port) as start:
        for _ in range(2):
            sampler.sample_once()
            assert sampler.violations == []
            start()
        sampler.sample_once()
    assert [what.split(" ", 1)[1][:13] for what in sampler.violations] == ["two trees of ", "2 listeners o"]
    assert {key for key, _ in sampler.generations} == {"comfyui/0"}


def test_the_sampler_tells_from_its_own_process_what_it_sees(tmp_path: Path) -> None:
    port = free_port()
    with Sampler(tmp_path, frozenset([port])) as sampler, twins(tmp_path, port) as start:
        start()
        start()
        deadline = time.monotonic() + 60
        while len(sampler.violations) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert {what.split(" ", 1)[1][:13] for what in sampler.violations} == {"two trees of ", "2 listeners o"}
    assert {uuid[:1] for _, uuid in sampler.generations} == {"a", "b"}
    assert sampler.samples > 0


def test_a_prompt_given_twice_to_one_process_is_seen(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    entries = [{"pid": pid, "prompt_id": "p", "event": "accepted"} for pid in (1, 2)]
    journal.write_text("".join(json.dumps(one) + "\n" for one in entries))
    check_journal(journal)
    journal.write_text("".join(json.dumps(one) + "\n" for one in [*entries, entries[0]]))
    with pytest.raises(AssertionError):
        check_journal(journal)


def test_a_decoy_notes_signals_and_its_end(tmp_path: Path) -> None:
    decoys = Decoys(tmp_path)
    try:
        pid = decoys.start("one", ["python", "main.py"], port=free_port())
        assert decoys.harmed() == []
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not decoys.signals():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert decoys.harmed() == ["one was signalled: ['15']"]
        os.kill(pid, signal.SIGKILL)
        decoys.processes["one"].wait(10)
        assert decoys.harmed()[1:] == ["one was ended"]
    finally:
        decoys.end()


@pytest.mark.parametrize(
    "harm",
    [
        "INSERT INTO event (seq, at, type, subject, data) VALUES (1, 0, '', '', ''), (3, 0, '', '', '')",
        "UPDATE task SET state = 'PENDING'",
        "UPDATE task SET lease_mono = 1",
    ],
)
def test_a_database_that_is_not_at_rest_is_seen(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "comfyd.db"
    with closing(connect(path, 1)) as db:
        db.execute("INSERT INTO event (seq, at, type, subject, data) VALUES (2, 0, '', '', '')")
        db.execute("DELETE FROM event")
        needed = [row for row in db.execute("PRAGMA table_info(task)") if row["notnull"] and row["dflt_value"] is None]
        values = {row["name"]: "COMPLETED" if row["name"] == "state" else 1 for row in needed}
        db.execute("INSERT INTO event (seq, at, type, subject, data) VALUES (2, 0, '', '', '')")
        names = ", ".join(values)
        db.execute(f"INSERT INTO task ({names}) VALUES ({', '.join('?' * len(values))})", tuple(values.values()))
    check_database(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM event")
        db.execute("INSERT INTO event (seq, at, type, subject, data) VALUES (2, 0, '', '', '')")
        if harm.startswith("INSERT"):
            db.execute("DELETE FROM event")
        db.execute(harm)
        db.commit()
    with pytest.raises(AssertionError):
        check_database(path)


PORT = 3001


def facts(state: str = "ready", pid: int | None = 7, *pids: int, task: str = "COMPLETED", args: str = "") -> Facts:
    live = {0: tuple((one, one) for one in pids or (7,))} if pid else {}
    argv = {one: (*args.split(), "--port", str(PORT)) for one in (*pids, 7, 8)}
    return Facts("ok", {0: (state, PORT, pid, "a")}, frozenset(), {"t": task}, live, argv)


def modelled() -> Model:
    model = Model({0: Entry(PORT, name="a")})
    model.create("t")
    assert model.problems(facts()) == []
    assert model.remember(facts()) == []
    return model


@pytest.mark.parametrize(
    "seen",
    [
        facts("stopped", None), facts("starting"), facts("ready", 8), facts("ready", 7, 7, 8), facts("ready", 8, 7),
        facts(args="--lowvram"),
    ],
)  # fmt: skip
def test_the_model_sees_an_instance_that_is_not_as_wished(seen: Facts) -> None:
    model = modelled()
    assert model.problems(seen) or model.remember(seen)


def test_the_model_sees_a_process_that_moved_and_one_that_stayed() -> None:
    model = modelled()
    assert model.remember(facts("ready", 8, 8))
    model.verb(0, "restart")
    model.clear(0)
    assert model.problems(facts())
    assert model.problems(facts("ready", 8, 8)) == model.remember(facts("ready", 8, 8)) == []
    model.edit(0, name="b")
    assert model.problems(facts("ready", 8, 8))


def test_the_model_sees_broken_promises_of_tasks() -> None:
    assert modelled().broken_promises(facts()) == []
    for state in ("FAILED", "CANCELLED"):
        assert modelled().broken_promises(facts(task=state))
    model = modelled()
    assert model.broken_promises(facts(task="PENDING")) == []
    assert model.open_tasks() == ["t"]
    assert model.broken_promises(facts()) == model.open_tasks() == []
    assert model.broken_promises(facts(task="PENDING"))
    model.create("gone")
    assert model.broken_promises(facts())
