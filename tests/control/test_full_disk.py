"""The journal cannot be written: nothing is started unrecorded, nothing is started twice, nothing else is damaged.

The full disk is a limit on the size of a file: a write is cut short at it, the next one fails.
"""

import contextlib
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyd.control.runs import Run
from comfyd.control.spawning import PART, Spawner
from comfyd.host import clock, proc, procfs
from comfyd.host.journal import COMPACT_AFTER, Journal
from comfyd.model.base import Now
from comfyd.model.desired import ProbeSpec
from comfyd.model.plan import StartProcess
from comfyd.model.process import DesiredProcess, ProcessSpec
from tests.control.conftest import alive, end

PAD = {"uuid": "pad", "pad": "x" * 100_000}


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path / "run.journal")
    one.open()
    one.started([PAD])
    yield one
    one.close()


def read_again(tmp_path: Path) -> list[str]:
    again = Journal(tmp_path / "run.journal")
    try:
        return [record["uuid"] for record in again.open()]
    finally:
        again.close()


def action(root: Path, key: str) -> StartProcess:
    spec = ProcessSpec(
        key=key, argv=("/bin/sleep", "600"), cwd=str(root), port=None, probe=ProbeSpec(type="none"),
        log=str(root / f"{key}.log"),
    )  # fmt: skip
    return StartProcess(DesiredProcess(key=key, spec=spec, fingerprint="f", run=True), frozenset(), "test")


def ours(owner: str) -> list[int]:
    return [pid for pid in procfs.all_pids() if procfs.owner_of(pid) == owner]


def test_a_record_that_was_cut_short_spoils_none_after_it(tmp_path: Path, journal: Journal) -> None:
    size = (tmp_path / "run.journal").stat().st_size
    with files_at_most(size + 20), pytest.raises(OSError, match=r"too large|space"):
        journal.started([{"uuid": "lost", "key": "a" * 100}])
    journal.started([{"uuid": "kept", "key": "b"}])
    assert read_again(tmp_path) == ["pad", "kept"]


def test_hints_and_ends_that_cannot_be_written_do_no_harm(tmp_path: Path, journal: Journal) -> None:
    with files_at_most((tmp_path / "run.journal").stat().st_size):
        journal.marked("pad", ready=True)
        journal.ended("pad")
    journal.started([{"uuid": "kept", "key": "b"}])
    lines = (tmp_path / "run.journal").read_text().splitlines()
    assert [json.loads(line)["op"] for line in lines] == ["start", "start"]


def test_a_compaction_that_fails_keeps_the_journal_open(tmp_path: Path, journal: Journal) -> None:
    """The number of a closed file may soon be the one of the database."""
    for n in range(COMPACT_AFTER // 2):
        journal.started([{"uuid": f"u{n}", "key": "k"}])
        if n:
            journal.ended(f"u{n}")
    before = os.listdir("/proc/self/fd")
    with files_at_most(1000):
        journal.ended("u0")
    assert os.listdir("/proc/self/fd") == before
    for n in range(10):
        journal.started([{"uuid": f"later{n}", "key": "k"}])
        journal.ended(f"later{n}")
    journal.started([{"uuid": "kept", "key": "b"}])
    assert read_again(tmp_path) == ["pad", "kept"]


def test_what_cannot_be_recorded_is_not_started_and_not_left_at_its_barrier(tmp_path: Path, journal: Journal) -> None:
    owner = os.urandom(8).hex()
    spawner = Spawner(journal, clock.boot_id(), procfs.pid_namespace(), owner, proc.handed_down(os.environ))
    wanted = [action(tmp_path, f"k{n}") for n in range(PART + 2)]
    before = os.listdir("/proc/self/fd")
    room = 700 * PART  # enough to record the first part, not the second
    with files_at_most((tmp_path / "run.journal").stat().st_size + room):
        results = spawner.start_batch(wanted, Now(clock.mono(), clock.wall()))
    runs = [result for _, result in results if isinstance(result, Run)]
    try:
        assert [a.key for a, _ in results] == [a.key for a in wanted]
        refused = [result for _, result in results if not isinstance(result, Run)]
        assert refused, "the limit was too high for this test"
        assert all("record" in str(error.strerror) for error in refused)
        deadline = time.monotonic() + 5  # while it executes its program a process shows no environment
        while sorted(ours(owner)) != (wanted_pids := sorted(run.process.pid for run in runs)):
            assert time.monotonic() < deadline, (ours(owner), wanted_pids)
        assert all(alive(run.process.pid) for run in runs)
        assert read_again(tmp_path) == ["pad", *(run.generation for run in runs)]
    finally:
        for run in runs:
            end(run.process.pid)
            run.process.status()
            run.process.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
