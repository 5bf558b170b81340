"""Run one program to its end in a session of its own, and leave nothing of it behind.

Owns: scripts, git, pip and probes of an install. Output goes to a file descriptor, never to a pipe; however the run
ends (exit, stall, time limit, cancellation), every process that carries its uuid or is in its session is ended.
Must not: be used for processes that outlive the caller (host/proc.py starts those).
"""

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from uuid import uuid4

import anyio
import anyio.to_thread

from comfyd.host import children
from comfyd.host.clock import mono, wall
from comfyd.host.proc import signal_member
from comfyd.host.procfs import UUID_VARIABLE, mark, read_stat, scan_members

CAPTURE_BYTES = 1024 * 1024
UMASK = 0o022
"""Trees are read by other accounts of the box (web servers, file browsers), so group and world keep read access."""
_ENDS_AT_LATEST_S = 10.0
_BUSY_TRIES = 50


@dataclass(frozen=True, slots=True)
class Command:
    """argv without a shell; env is the whole environment. Times in seconds.

    stall_s: end it after so long without output (None: never). grace_s: between SIGTERM and SIGKILL.
    """

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    limit_s: float
    stall_s: float | None = None
    grace_s: float = 5.0
    uuid: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True, slots=True)
class Ended:
    """why: exited | stalled | timed_out. code: exit status, negative for a signal (as subprocess does)."""

    code: int
    why: Literal["exited", "stalled", "timed_out"] = "exited"
    output: bytes = b""

    @property
    def ok(self) -> bool:
        return self.why == "exited" and self.code == 0

    def text(self) -> str:
        """One phrase for people."""
        if self.why != "exited":
            return {"stalled": "printed nothing for too long and was ended", "timed_out": "took too long"}[self.why]
        return f"ended with exit code {self.code}" if self.code >= 0 else f"was killed by signal {-self.code}"


Started = Callable[[int, int], Awaitable[None]]
"""Awaited with (pid, start time in clock ticks) right after the start."""


async def run_logged(command: Command, log: Path, started: Started | None = None) -> Ended:
    """Run with stdout and stderr appended to `log`. Raises OSError if it cannot be started."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(log, flags, 0o644)
    try:
        return await _run(command, fd, started)
    finally:
        os.close(fd)


async def run_captured(command: Command) -> Ended:
    """Run and return at most 1 MiB of its output (stdout and stderr together). Raises OSError."""
    with tempfile.TemporaryFile() as file:
        ended = await _run(command, file.fileno(), None)
        return Ended(ended.code, ended.why, os.pread(file.fileno(), CAPTURE_BYTES, 0))


async def end_processes(uuid: str, session: int | None = None, grace_s: float = 5.0) -> bool:
    """End every process with `uuid` in its environment or in `session`. True when none is left."""
    begun, sent = mono(), set[tuple[int, int, int]]()
    pause = 0.01
    while True:
        members = await anyio.to_thread.run_sync(scan_members, [uuid], [session] if session else [])
        if not members:
            return True
        late = mono() - begun
        if late > grace_s + _ENDS_AT_LATEST_S:
            return False
        number = 9 if late >= grace_s else 15
        for member in members:
            mark = (member.stat.pid, member.stat.starttime, number)
            if mark not in sent:
                sent.add(mark)
                signal_member(member, number)
        await anyio.sleep(pause)
        pause = min(pause * 2, 0.2)


async def _run(command: Command, output: int, started: Started | None) -> Ended:
    child = await anyio.to_thread.run_sync(_spawn, command, output)
    why: Literal["exited", "stalled", "timed_out"] = "exited"
    try:
        stat = read_stat(child.pid)
        if started is not None:
            await started(child.pid, stat.starttime if stat else 0)
        why = await _wait(child.pid, output, command)
    finally:
        with anyio.CancelScope(shield=True):
            # The leader stays a zombie until its session is empty: so its pid cannot name a stranger's session.
            await end_processes(command.uuid, child.pid, command.grace_s)
            found = await anyio.to_thread.run_sync(children.bury, child.pid)
            child.returncode = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    return Ended(child.returncode, why)


def _spawn(command: Command, output: int) -> "subprocess.Popen[bytes]":
    env = {**command.env, UUID_VARIABLE: command.uuid}
    for left in range(_BUSY_TRIES, -1, -1):
        try:
            with children.birth() as awaited:
                child = subprocess.Popen(
                    command.argv, cwd=command.cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True, umask=UMASK,
                )  # fmt: skip
                awaited.add(child.pid)
            mark(child.pid, command.uuid)
            return child
        except OSError as error:
            # Another thread's fork may still hold the descriptor through which the script was written.
            if error.errno != errno.ETXTBSY or not left:
                raise
            time.sleep(0.02)
    raise AssertionError("unreachable")


async def _wait(pid: int, output: int, command: Command) -> Literal["exited", "stalled", "timed_out"]:
    end = mono() + command.limit_s
    grown, size = mono(), os.fstat(output).st_size
    while True:
        stall_end = grown + command.stall_s if command.stall_s is not None else end
        with anyio.move_on_after(max(0.0, min(end, stall_end) - mono())):
            await _exited(pid)
            return "exited"
        if mono() >= end:
            return "timed_out"
        info = os.fstat(output)
        if info.st_size == size:
            return "stalled"
        size, grown = info.st_size, max(grown, mono() - max(0.0, wall() - info.st_mtime))


async def _exited(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        while not _is_over(pid):  # noqa: ASYNC110 (a kernel without pidfds tells nobody)
            await anyio.sleep(0.2)
        return
    try:
        await anyio.wait_readable(fd)
    finally:
        os.close(fd)


def _is_over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
