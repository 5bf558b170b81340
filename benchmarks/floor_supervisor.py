"""The floor of supervision: inotify, posix_spawn, pidfd, asyncio, and nothing else. FOLDER CHILD SOCKET

No journal, no barrier, no logs, no history: what is measured against it is what those cost.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

IN_MOVED_TO = 0x80
NULL = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]


class Floor:
    def __init__(self, folder: Path, child: str, socket: str) -> None:
        self.file = folder / "wanted.json"
        self.child, self.socket = child, socket
        self.wanted: dict[str, int] = {}
        self.running: dict[str, tuple[int, int, int]] = {}
        self.loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()

    def watch(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        libc.inotify_add_watch(fd, bytes(self.file.parent), IN_MOVED_TO)
        self.loop.add_reader(fd, self.changed, fd)

    def changed(self, fd: int) -> None:
        os.read(fd, 65536)
        self.wanted = json.loads(self.file.read_text())
        self.converge()

    def converge(self) -> None:
        for key, (_, fd, version) in list(self.running.items()):
            if self.wanted.get(key) != version:
                signal.pidfd_send_signal(fd, signal.SIGTERM)
        for key in self.wanted:
            if key not in self.running:
                self.spawn(key)

    def spawn(self, key: str) -> None:
        version = self.wanted[key]
        argv = [self.child, self.socket, key, str(version)]
        pid = os.posix_spawn(self.child, argv, os.environ, file_actions=NULL, setsid=True)
        fd = os.pidfd_open(pid)
        self.running[key] = (pid, fd, version)
        self.loop.add_reader(fd, self.gone, key)

    def gone(self, key: str) -> None:
        pid, fd, _ = self.running.pop(key)
        self.loop.remove_reader(fd)
        os.close(fd)
        os.waitpid(pid, 0)
        if key in self.wanted:
            self.spawn(key)
        elif not self.running:
            self.ended.set()

    async def run(self) -> None:
        stop = asyncio.Event()
        self.loop.add_signal_handler(signal.SIGTERM, stop.set)
        self.watch()
        (self.file.parent / "ready").touch()
        await stop.wait()
        self.wanted = {}
        self.ended.clear()
        if self.running:
            self.converge()
            await self.ended.wait()


async def main() -> None:
    await Floor(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).run()


asyncio.run(main())
