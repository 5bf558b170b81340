"""`engine`: every test of the behaviour suite runs once per engine; `postgres`: that engine alone."""

from pathlib import Path

import pytest

from tests.store.engines import PostgresEngine, SqliteEngine


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteEngine:
    if request.param == "sqlite":
        return SqliteEngine(tmp_path)
    return PostgresEngine(tmp_path, request.getfixturevalue("postgres_server"))


@pytest.fixture
def postgres(request: pytest.FixtureRequest, tmp_path: Path) -> PostgresEngine:
    return PostgresEngine(tmp_path, request.getfixturevalue("postgres_server"))
