"""`engine`: every test of the behaviour suite runs once per engine; `postgres`: that engine alone."""

from pathlib import Path

import pytest

from tests.store.engines import ForgetfulEngine, PostgresEngine, SqliteEngine

SHARED = {"postgres": PostgresEngine, "postgres-forgetful": ForgetfulEngine}


@pytest.fixture(params=["sqlite", *(pytest.param(name, marks=pytest.mark.postgres) for name in SHARED)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteEngine:
    if request.param == "sqlite":
        return SqliteEngine(tmp_path)
    return SHARED[request.param](tmp_path, request.getfixturevalue("postgres_server"))


@pytest.fixture
def postgres(request: pytest.FixtureRequest, tmp_path: Path) -> PostgresEngine:
    return PostgresEngine(tmp_path, request.getfixturevalue("postgres_server"))
