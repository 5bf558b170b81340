"""The stand-in's ways to fail at its start: lock of the database, imports that fail, an exit code."""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import fake
from tests.fake import Fake

Spawn = Callable[..., Fake]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    made: list[Fake] = []

    def one(*extra: str, **quirks: str) -> Fake:
        made.append(fake.spawn(tmp_path / str(len(made)), *extra, **quirks))
        return made[-1]

    yield one
    for process in made:
        process.kill()


def test_the_newer_contract_locks_its_database_and_a_peer_exits_with_1(spawn: Spawn, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared/comfyui.db"
    first = spawn("--fake-generation", "new", "--database-url", url).wait_ready()
    second = spawn("--fake-generation", "new", "--database-url", url, LOCK_WAIT="0.3")
    assert second.process.wait(10) == 1
    assert "database" in second.log
    assert first.answers()
    assert spawn("--fake-generation", "new").wait_ready().answers()


def test_the_lock_is_waited_for_and_ends_with_the_process(spawn: Spawn, tmp_path: Path) -> None:
    path = tmp_path / "comfyui.db"
    with open(f"{path}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waits = spawn("--fake-generation", "new", "--database-url", f"sqlite:///{path}", LOCK_WAIT="20")
        with pytest.raises(AssertionError):
            waits.wait_ready(0.5)
        assert waits.process.poll() is None
    waits.wait_ready()
    waits.kill()
    spawn("--fake-generation", "new", "--database-url", f"sqlite:///{path}", LOCK_WAIT="0.3").wait_ready()


def test_the_older_contract_shares_a_database(spawn: Spawn, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/comfyui.db"
    for _ in range(2):
        spawn("--database-url", url).wait_ready()


def test_failed_imports_are_listed_before_it_listens_and_do_not_stop_it(spawn: Spawn) -> None:
    one = spawn(IMPORT_FAILED="broken-node,other").wait_ready()
    lines = [line for line in one.log.splitlines() if "IMPORT FAILED" in line]
    assert [line.rsplit("/", 1)[-1] for line in lines] == ["broken-node", "other"]
    assert one.log.index("IMPORT FAILED") < one.log.index("To see the GUI go to")
    assert "IMPORT FAILED" not in spawn().wait_ready().log


def test_an_exit_at_the_start_says_so(spawn: Spawn) -> None:
    one = spawn(EXIT="7")
    assert one.process.wait(10) == 7
    assert "exit with 7" in one.log
