"""`engine`: every test of the behaviour suite runs once per engine."""

from pathlib import Path

import pytest

from tests.store.engines import SqliteEngine

ENGINES = {"sqlite": SqliteEngine}


@pytest.fixture(params=["sqlite"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteEngine:
    return ENGINES[request.param](tmp_path)
