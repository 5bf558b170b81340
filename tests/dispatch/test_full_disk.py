"""Outputs that meet a full disk: the task goes back to the queue."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from comfyd.dispatch import ending
from comfyd.model.task import TaskState
from tests.dispatch.rig import Fakes, rig
from tests.graphs import fresh

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_no_space_for_outputs_puts_the_task_back_uncharged(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, refused = ending.store_outputs, 0

    async def full_twice(*given: Any) -> Any:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise OSError(number, os.strerror(number))
        return await real(*given)

    monkeypatch.setattr(ending, "store_outputs", full_twice)
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(fresh()))
    assert (task.status, task.attempts, task.infra_losses) == (TaskState.COMPLETED, 1, 2)
