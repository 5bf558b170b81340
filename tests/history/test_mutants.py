"""Random workloads on the real store are found to be right; the same on each of its mutants are found to be wrong.

COMFYD_TEST_SEED replays one run.
"""

import os
import random
from pathlib import Path

import pytest

from tests.history.mutants import MUTANTS, NONE, Mutant
from tests.history.world import World

pytestmark = pytest.mark.asyncio
TRIES = 25


def seed() -> int:
    chosen = int(os.environ.get("COMFYD_TEST_SEED", random.randrange(2**32)))
    print(f"COMFYD_TEST_SEED={chosen}")
    return chosen


async def clean_run(folder: Path) -> None:
    found = await World(folder, seed(), NONE).run()
    assert not found, "\n".join(map(str, found[:5]))


@pytest.mark.parametrize("run", range(2))
async def test_the_store_as_it_is(tmp_path: Path, run: int) -> None:
    await clean_run(tmp_path / "world")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_store_as_it_is_for_longer(tmp_path: Path) -> None:
    for run in range(40):
        await clean_run(tmp_path / f"world{run}")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
async def test_a_mutant_is_caught(tmp_path: Path, mutant: Mutant) -> None:
    for number in range(TRIES):
        found = await World(tmp_path / f"world{number}", seed(), mutant).run()
        if mutant.rules & {violation.rule for violation in found}:
            return
    pytest.fail(f"the checker passed {mutant.name} in {TRIES} runs")
