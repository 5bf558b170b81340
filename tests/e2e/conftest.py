"""Fixtures of the e2e tier: a root and a daemon on it, everything ended afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, make_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


@pytest.fixture
def daemon(root: Path) -> Iterator[Daemon]:
    """Not started yet; whatever it starts is ended."""
    one = Daemon(root)
    yield one
    one.end_everything()
