"""The stand-in as a process: flags, signals, and the ways in which it misbehaves on request."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from comfyd.dispatch.comfy import ComfyClient
from tests import fake
from tests.fake import FAKE_COMFYUI, Fake, eventually
from tests.graphs import fresh

Spawn = Callable[..., Fake]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    made: list[Fake] = []

    def one(*extra: str, **quirks: str) -> Fake:
        made.append(fake.spawn(tmp_path / str(len(made)), *extra, **quirks))
        return made[-1]

    yield one
    for process in made:
        process.kill()


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", FAKE_COMFYUI, *argv], capture_output=True, text=True, check=False)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_help_lists_the_flags_without_the_slow_imports() -> None:
    answer = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", FAKE_COMFYUI, "--help"], capture_output=True, text=True, check=True
    )
    for flag in ("--listen", "--port", "--output-directory", "--temp-directory", "--database-url", "--lowvram"):
        assert flag in answer.stdout
    assert "argparse" in answer.stderr
    assert "asyncio" not in answer.stderr


@pytest.mark.parametrize("argv", [["--bogus"], ["--cpu", "--lowvram"], ["--port", "x"], ["--user-directory", "/none"]])
def test_bad_arguments_end_it_with_2(argv: list[str]) -> None:
    answer = command(*argv)
    assert answer.returncode == 2
    assert "error:" in answer.stderr


def test_flags_with_many_values_come_last(spawn: Spawn) -> None:
    assert spawn("--extra-model-paths-config", "a.yaml", "b.yaml").wait_ready().answers()


def test_sigint_ends_it_cleanly_and_empties_the_temp_folder(spawn: Spawn) -> None:
    one = spawn().wait_ready()
    temp = one.folder / "instance/temp"
    assert temp.is_dir()
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(5) == 0
    assert "Stopped server" in one.log
    assert not temp.exists()


def test_sigterm_kills_it(spawn: Spawn) -> None:
    one = spawn().wait_ready()
    one.process.terminate()
    assert one.process.wait(5) == -signal.SIGTERM
    assert "Stopped server" not in one.log


def test_a_port_in_use_is_a_traceback_and_exit_1(spawn: Spawn) -> None:
    one = spawn().wait_ready()
    other = fake.spawn(one.folder / "other", port=one.port)
    assert other.process.wait(10) == 1
    assert "Traceback" in other.log
    assert one.answers()


def test_signals_are_ignored_on_request(spawn: Spawn) -> None:
    one = spawn(IGNORE="TERM,INT").wait_ready()
    one.process.terminate()
    one.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        one.process.wait(0.3)
    assert one.answers()


def test_it_can_exit_at_start_or_never_open_its_port(spawn: Spawn) -> None:
    assert spawn(EXIT="3").process.wait(10) == 3
    never, late = spawn(NEVER_READY="1"), spawn("--fake-start-delay", "0.5")
    assert not listens(late.port)
    late.wait_ready()
    assert not listens(never.port)
    assert never.process.poll() is None
    never.process.send_signal(signal.SIGINT)
    assert never.process.wait(5) == 0


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_forked_child_survives_sigterm_in_its_group(spawn: Spawn) -> None:
    one = spawn(FORK="1").wait_ready()
    (child,) = children_of(one.process.pid)
    os.killpg(one.process.pid, signal.SIGTERM)
    one.process.wait(5)
    assert os.getpgid(child) == one.process.pid
    os.kill(child, signal.SIGKILL)


def test_a_flood_does_not_keep_it_from_answering(spawn: Spawn) -> None:
    one = spawn(FLOOD_MB="5").wait_ready()
    assert one.answers()

    async def flooded() -> None:
        await eventually(lambda: (one.folder / "log").stat().st_size > 5_000_000)

    asyncio.run(flooded())


def test_a_wedge_takes_connections_and_answers_nothing(spawn: Spawn) -> None:
    one = spawn().wait_ready()
    urllib.request.urlopen(f"{one.url}/fake/wedge", b"").close()
    assert listens(one.port)
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(f"{one.url}/prompt", timeout=0.3)
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(5) == 0


@pytest.mark.asyncio
async def test_the_second_prompt_can_kill_it(spawn: Spawn, tmp_path: Path) -> None:
    one = await asyncio.to_thread(spawn(CRASH_ON_PROMPT="2", JOURNAL=str(tmp_path / "journal")).wait_ready)
    async with aiohttp.ClientSession() as session:
        client = ComfyClient(session, one.url)
        for prompt in ("first", "second"):
            await client.submit(prompt, fresh(), "me")
        assert await asyncio.to_thread(one.process.wait, 5) == -signal.SIGKILL
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert [line["prompt_id"] for line in lines if line["event"] == "executed"] == ["first", "second"]
