"""Stand-ins below the test's own data folder, ended with the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dispatch.rig import Fakes


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    made = Fakes(tmp_path)
    yield made
    for one in made.made:
        one.kill()
