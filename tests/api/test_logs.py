"""Following the log of an instance: through rotations, with a reader that is too slow, and until the reader goes."""

import asyncio
import os
from pathlib import Path

import aiohttp
import pytest

from comfyd.api.logs import GAP
from comfyd.host.rotate import rotate
from tests.api.world import world


@pytest.mark.asyncio
async def test_following_waits_for_a_log_and_goes_on_through_rotations(tmp_path: Path) -> None:
    log = tmp_path / "workspace/logs/comfyui_instance_0.log"
    async with world(tmp_path) as w, asyncio.timeout(30):
        assert w.session is not None
        async with w.session.get(f"{w.url}/api/comfyui/instances/0/logs?follow=1") as response:
            for number in range(10):
                with log.open("a") as file:
                    file.write(f"{number} before\n")
                if number % 3 == 0:
                    rotate(log)
                with log.open("a") as file:
                    file.write(f"{number} after\n")
                assert await response.content.readline() == f"{number} before\n".encode()
                assert await response.content.readline() == f"{number} after\n".encode()


@pytest.mark.asyncio
async def test_a_reader_slower_than_a_flood_is_told_of_the_gap_and_holds_up_nobody(tmp_path: Path) -> None:
    """The flood is far more than sockets hold, and is rotated away while the first reader reads nothing."""
    log = tmp_path / "workspace/logs/comfyui_instance_0.log"
    path, mega = "/api/comfyui/instances/0/logs?follow=1", b"x" * 1023 + b"\n"
    async with world(tmp_path) as w, asyncio.timeout(50):
        assert w.session is not None
        log.write_bytes(b"first\n")
        slow, quick = [await w.session.get(w.url + path, read_bufsize=2**14) for _ in range(2)]
        assert await slow.content.readline() == await quick.content.readline() == b"first\n"
        for turn in range(12):
            with log.open("ab") as file:
                file.write(mega * 2048 + b"turn %d\n" % turn)
            while not (await quick.content.readline()).startswith(b"turn"):
                pass
            await asyncio.to_thread(rotate, log)
        log.write_bytes(b"the end\n")
        assert await quick.content.readline() == b"the end\n"
        lines = []
        while not lines or lines[-1] != b"the end\n":
            lines.append(await slow.content.readline())
        assert len([line for line in lines if b"output is missing here" in line]) == 1
        assert lines[-2] == GAP.lstrip(b"\n")
        assert len(lines) < 8 * 2048
        slow.close()
        quick.close()


@pytest.mark.asyncio
async def test_a_reader_that_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "workspace/logs/comfyui_instance_0.log"
    async with world(tmp_path) as w, asyncio.timeout(20):
        log.write_text("one\n")
        tasks, fds = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            async with aiohttp.ClientSession() as session:
                response = await session.get(f"{w.url}/api/comfyui/instances/0/logs?follow=1")
                assert await response.content.readline() == b"one\n"
                response.close()
        while len(asyncio.all_tasks()) > tasks or len(os.listdir("/proc/self/fd")) > fds:
            await asyncio.sleep(0.05)
