"""Starts that the system refuses: the reason is a fact, others are unaffected, a shortage is charged to nobody."""

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from comfyd.model.observed import ExitInfo, Phase
from comfyd.model.process import DesiredProcess
from tests.control.conftest import Bench, alive, open_bench

SLEEP = "import time; time.sleep(600)"


def with_argv(wish: DesiredProcess, *argv: str) -> DesiredProcess:
    return wish.model_copy(update={"spec": wish.spec.model_copy(update={"argv": argv})})


def plain_file(root: Path) -> str:
    path = root / "program"
    path.write_text("#!/bin/sh\n")
    return str(path)


def directory(root: Path) -> str:
    return str(root)


def without_interpreter(root: Path) -> str:
    path = root / "program"
    path.write_text("#!/nowhere/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("make", "more", "reason"),
    [
        (lambda root: str(root / "nothing"), (), "program does not exist"),
        (plain_file, (), "program cannot be executed"),
        (directory, (), "program cannot be executed"),
        (without_interpreter, (), "the program "),
        (lambda root: sys.executable, ("x" * 300_000,), os.strerror(errno.E2BIG)),
        (lambda root: sys.executable, ("a\0b",), "null byte"),
    ],
    ids=["ENOENT", "EACCES", "EISDIR", "no interpreter", "E2BIG", "NUL"],
)
async def test_the_reason_is_shown_and_a_sibling_starts_all_the_same(
    root: Path, make: "object", more: tuple[str, ...], reason: str
) -> None:
    assert callable(make)
    async with open_bench(root) as bench:
        refused = with_argv(bench.wish("comfyui/0", SLEEP), make(root), *more)
        await bench.start(refused, bench.wish("comfyui/1", SLEEP))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        seen = bench.seen("comfyui/0")
        assert seen.last_exit is not None
        assert reason in seen.last_exit.text()
        assert (seen.crashes, seen.last_exit.short, seen.last_exit.asked) == (1, False, False)
        await end_sibling(bench)


async def end_sibling(bench: Bench) -> None:
    await bench.until(lambda: bench.seen("comfyui/1").phase is Phase.READY)
    assert alive(bench.seen("comfyui/1").pid or 0)
    bench.stop("comfyui/1")
    await bench.until(lambda: bench.seen("comfyui/1").phase is Phase.GONE)


@contextmanager
def descriptors(room: int) -> Iterator[None]:
    """This process can open only so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, hard))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(room):
            os.close(held.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


@pytest.mark.asyncio
@pytest.mark.parametrize("room", [0, 2, 3])
async def test_without_descriptors_nothing_is_charged_nothing_leaks_and_it_starts_later(root: Path, room: int) -> None:
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/1", SLEEP))
        await bench.until(lambda: bench.seen("comfyui/1").phase is Phase.READY)
        before = len(os.listdir("/proc/self/fd"))
        with descriptors(room):
            await bench.start(bench.wish("comfyui/0", SLEEP))
        seen = bench.seen("comfyui/0")
        assert seen.last_exit is not None
        assert os.strerror(errno.EMFILE) in seen.last_exit.text()
        assert (seen.crashes, seen.last_exit.short) == (0, True)
        assert len(os.listdir("/proc/self/fd")) == before
        await bench.start(bench.wish("comfyui/0", SLEEP))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        await end_sibling(bench)


def test_shortages_are_those_that_pass_by_themselves() -> None:
    def short(name: str) -> bool:
        return ExitInfo(errno=name, at=1.0, wall=1.0).short

    assert all(map(short, ("EMFILE", "ENFILE", "EAGAIN", "ENOMEM")))
    assert not any(map(short, ("ENOENT", "EACCES", "E2BIG", "ENOSPC")))
