"""The supervised children as they really are: each reports its start by itself, its end is seen by pidfd.

Owns: who runs, in which version, since when. Must not: know who supervises them.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import REPOSITORY

NS = 1e9


class Unavailable(RuntimeError):
    """Something this benchmark needs is not on this machine; the message says how to get it."""


def build_child(folder: Path) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Unavailable("the child of these benchmarks is a small C program: install gcc")
    target = folder / "child"
    source = REPOSITORY / "benchmarks/child.c"
    subprocess.run([compiler, "-O2", "-static", "-o", str(target), str(source)], check=True, timeout=60)
    return target


@dataclass(slots=True)
class Child:
    id: int
    version: int
    pid: int
    started: float
    pidfd: int


class World:
    """Collects reports and ends. `running`: id -> version of what lives; `starts`: how often each id started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self._socket.bind(str(path))
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._by_fd: dict[int, Child] = {}
        self.children: dict[int, Child] = {}
        self.running: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.last = 0.0

    def until(self, condition: Callable[[], bool], limit_s: float) -> float:
        """The time (monotonic s) of the event that made `condition` true; infinity if it did not become true."""
        deadline = time.monotonic() + limit_s
        while True:
            self._drain(0)
            if condition():
                return self.last
            left = deadline - time.monotonic()
            if left <= 0:
                return float("inf")
            self._drain(left)

    def is_exactly(self, wanted: dict[int, int], limit_s: float) -> float:
        return self.until(lambda: self.running == wanted and len(self._by_fd) == len(wanted), limit_s)

    def watch(self, pid: int) -> Callable[[], bool]:
        """A condition: that process has ended. Its end counts as an event."""
        fd = os.pidfd_open(pid)
        self._epoll.register(fd, select.EPOLLIN)
        self._by_fd[fd] = Child(-1, 0, pid, 0.0, fd)
        return lambda: fd not in self._by_fd

    def _drain(self, wait_s: float) -> None:
        for fd, _ in self._epoll.poll(wait_s):
            if fd == self._socket.fileno():
                self._reports()
            else:
                self._ended(fd)

    def _reports(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                number, version, pid, started = (int(w) for w in self._socket.recv(256).split())
                self.starts[number] = self.starts.get(number, 0) + 1
                try:
                    fd = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                child = Child(number, version, pid, started / NS, fd)
                self._by_fd[fd] = self.children[number] = child
                self.running[number] = version
                self.last = max(self.last, child.started)
                self._epoll.register(fd, select.EPOLLIN)

    def _ended(self, fd: int) -> None:
        self.last = time.monotonic()
        child = self._by_fd.pop(fd)
        self._epoll.unregister(fd)
        os.close(fd)
        if self.children.get(child.id) is child:
            del self.children[child.id], self.running[child.id]

    def close(self) -> None:
        """End what is left: only processes that reported to us."""
        for child in self._by_fd.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            os.close(child.pidfd)
        self._by_fd.clear()
        self._epoll.close()
        self._socket.close()
