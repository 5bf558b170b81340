"""Nothing is lost between one watch and the next."""

import asyncio
from pathlib import Path

import anyio
import pytest

from comfyd.control.watch import Watcher


@pytest.mark.asyncio
async def test_a_change_made_while_the_set_of_folders_changes_is_noticed(tmp_path: Path) -> None:
    folders = [tmp_path / str(n) for n in range(8)]
    for folder in folders:
        folder.mkdir()
    woken = asyncio.Event()
    watcher = Watcher(woken.set, debounce_s=0.02, force_polling=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run_watching)
        for number in range(1, len(folders) + 1):
            watcher.watch(tuple(folders[:number]))
            await asyncio.sleep(0)
            woken.clear()
            (folders[number - 1] / "file").write_text("edit")  # the new watch may not stand yet
            with anyio.fail_after(5):
                await woken.wait()
        watcher.close()
        tasks.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_closing_ends_a_quiet_watch_at_once(tmp_path: Path) -> None:
    watcher = Watcher(lambda: None, debounce_s=0.02, force_polling=False)
    watcher.watch((tmp_path,))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run_watching)
        await asyncio.sleep(0.1)
        with anyio.fail_after(2):
            watcher.close()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0)
