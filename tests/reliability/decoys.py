"""Strangers that look like an instance: same program name, argv, port or tags. They note every signal that they get."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.daemon import Daemon

CODE = """
import os, signal, socket, time
def told(number, frame):
    with open("signals", "a") as file:
        file.write(f"{number}\\n")
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, told)
port = int(os.environ.get("DECOY_PORT", "0"))
listener = socket.create_server(("127.0.0.1", port)) if port else None
print("ready", flush=True)
while True:
    if listener is None:
        time.sleep(60)
        continue
    caller, _ = listener.accept()
    with caller:
        try:
            caller.settimeout(5)
            caller.recv(4096)
            caller.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
        except OSError:
            pass
"""


class Decoys:
    """`start` some, look at `harmed` at the end, `end` them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: list[str], port: int | None = None, **environ: str) -> int:
        """A process with this argv in a folder of its own. Returns its pid once it listens and notes signals."""
        place = self.folder / name
        place.mkdir(parents=True)
        (place / "main.py").write_text(CODE)
        env = {**os.environ, **environ, **({"DECOY_PORT": str(port)} if port else {})}
        process = subprocess.Popen(
            argv, executable=sys.executable, cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self.processes[name] = process
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    def start_likenesses(self, daemon: Daemon, key: str = "comfyui/0") -> None:
        """Four of a running instance: its argv; also a uuid; also our owner's tag; and one whose pid our file names."""
        pid = daemon.pids()[key]
        argv, environ = argv_of(pid), environ_of(pid)
        stranger, tags = "f" * 32, {name: value for name, value in environ.items() if name.startswith("COMFYD_PROCESS")}
        self.start("argv", argv)
        self.start("uuid", argv, COMFYD_PROCESS_UUID=stranger)
        self.start("tags", argv, **{**tags, "COMFYD_PROCESS_UUID": "e" * 32})
        named = self.start("pid file", argv)
        (daemon.root / "workspace/logs/comfyui_instance_1.pid").write_text(f"{named}\n")

    def signals(self) -> Mapping[str, str]:
        """What each one was sent: the numbers, one a line."""
        notes = {name: self.folder / name / "signals" for name in self.processes}
        return {name: path.read_text() for name, path in notes.items() if path.exists()}

    def harmed(self) -> list[str]:
        told = [f"{name} was signalled: {numbers.split()}" for name, numbers in self.signals().items()]
        return told + [f"{name} was ended" for name, one in self.processes.items() if one.poll() is not None]

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


def argv_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


def environ_of(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(part.split("=", 1) for part in raw if "=" in part)
