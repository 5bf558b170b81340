"""Nothing is lost between one watch and the next, nor by a folder that is made again, nor without inotify."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import watchfiles

from comfyd.control import watch
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


@contextlib.asynccontextmanager
async def watching(*folders: Path) -> AsyncIterator[tuple[Watcher, asyncio.Event]]:
    """A watch of `folders` that stands; the event is set by each change."""
    woken = asyncio.Event()
    watcher = Watcher(woken.set, debounce_s=0.02, force_polling=False)
    watcher.watch(folders)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run_watching)
        with anyio.fail_after(10):
            await woken.wait()
        woken.clear()
        yield watcher, woken
        watcher.close()
        tasks.cancel_scope.cancel()


async def heard(woken: asyncio.Event) -> None:
    with anyio.fail_after(10):
        await woken.wait()
    woken.clear()


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["removed", "moved away"])
async def test_a_folder_that_is_made_again_is_watched_again(tmp_path: Path, how: str) -> None:
    """Its path is the same, the loop names the same set: only the events tell that the watch is on the old one."""
    inner = tmp_path / "inner"
    inner.mkdir()
    async with watching(tmp_path, inner) as (watcher, woken):
        for turn in range(3):
            inner.rename(tmp_path / f"old-{turn}") if how == "moved away" else shutil.rmtree(inner)
            inner.mkdir()
            await heard(woken)
            while True:  # whatever comes of making it, and the look that follows a new watch
                watcher.watch((tmp_path, inner))
                try:
                    async with asyncio.timeout(0.5):
                        await woken.wait()
                    woken.clear()
                except TimeoutError:
                    break
            (inner / "file").write_text("edit")
            await heard(woken)


@pytest.mark.asyncio
async def test_a_folder_that_is_missing_for_a_moment_ends_no_watch_for_ever(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    async with watching(tmp_path) as (watcher, woken):
        watcher.watch((tmp_path, inner))  # it was there when the set was made, and is not now
        await heard(woken)
        inner.mkdir()
        watcher.watch((tmp_path, inner))
        await heard(woken)
        (inner / "file").write_text("edit")
        await heard(woken)
        assert not watcher.polling


@pytest.mark.asyncio
async def test_without_inotify_it_polls_says_so_once_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(watch.log, "warning", lambda event, **_: told.append(event))
    monkeypatch.setattr(watch, "RETRY_S", 0.05)
    tries = 0
    real = watchfiles.awatch

    def awatch(*paths: Path, **given: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(28, "OS file watch limit reached")
        return real(*paths, **given)

    monkeypatch.setattr(watchfiles, "awatch", awatch)
    async with watching(tmp_path) as (watcher, woken):
        assert watcher.polling
        with anyio.fail_after(10):
            while watcher.polling:
                await asyncio.sleep(0.01)
        await heard(woken)
        (tmp_path / "file").write_text("edit")
        await heard(woken)
    assert (told, tries) == (["file watch lost, polling instead"], 4)
