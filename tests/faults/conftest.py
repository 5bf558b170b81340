"""Fixtures of the fault tier: a root with two instances and a daemon on it, everything ended afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, make_root
from tests.faults.surroundings import Shim, need_namespaces


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


@pytest.fixture
def daemon(root: Path) -> Iterator[Daemon]:
    """Not started yet. Only notices can tell it of edits: the comparison from time to time is ten minutes away."""
    one = Daemon(root, COMFYD_POLL_S="600")
    yield one
    one.end_everything()


@pytest.fixture
def shim(tmp_path: Path, daemon: Daemon) -> Shim:
    """Loaded by the daemon when it starts."""
    made = Shim(tmp_path)
    daemon.environ.update(made.environ)
    return made


@pytest.fixture
def namespaces() -> None:
    need_namespaces()
