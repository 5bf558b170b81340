"""Processes of a test: programs as services, pid namespaces, and what the kernel says of who lives."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, make_root, write_quick_install
from tests.ports import free_port

OWN_PIDS = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount-proc", "--fork", "--kill-child=SIGKILL"]
"""Runs the rest as PID 1 of a pid namespace; what lives in it ends with the one who started this."""


def missing(what: str) -> None:
    """The test cannot run here: a failure in CI, else skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, which CI must have")
    pytest.skip(what)


def need_pid_namespaces() -> None:
    tried = subprocess.run([*OWN_PIDS, "true"], check=False, capture_output=True, text=True)
    if tried.returncode != 0:
        missing(f"no pid namespace: {tried.stderr.strip()}")


class Patient(Daemon):
    """A daemon that is given time: what is asked here is whether something comes true, on a busy machine too."""

    def until(self, condition: Callable[[], Any], timeout_s: float = 60, what: str = "condition") -> None:
        super().until(condition, max(timeout_s, 60), what)


class First(Patient):
    """A daemon that is PID 1 of a pid namespace; its pids are those of the namespace, `outer` tells ours."""

    def __init__(self, root: Path, **environ: str) -> None:
        super().__init__(root, **environ)
        self.prefix = OWN_PIDS

    @property
    def pid(self) -> int:
        """Of PID 1, as seen from here. Raises OSError before it lives."""
        assert self.process is not None
        return only_child(self.process.pid)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


def only_child(pid: int) -> int:
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not below:
        raise ProcessLookupError(f"{pid} has no child")
    return int(below[0])


def outer(inner: int, namespace_of: int) -> int:
    """Our pid of the process that is `inner` in the pid namespace of our process `namespace_of`."""
    wanted = os.readlink(f"/proc/{namespace_of}/ns/pid")
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, StopIteration):
            if os.readlink(f"/proc/{name}/ns/pid") == wanted:
                status = Path(f"/proc/{name}/status").read_text().splitlines()
                if next(line for line in status if line.startswith("NSpid:")).split()[-1] == str(inner):
                    return int(name)
    raise AssertionError(f"no process is {inner} in {wanted}")


@dataclass(frozen=True)
class Seen:
    """What /proc/<pid>/stat says."""

    pid: int
    state: str
    parent: int
    session: int


def look(pid: int) -> Seen | None:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return Seen(pid, fields[0], int(fields[1]), int(fields[3]))
    return None


def lives(pid: int) -> bool:
    seen = look(pid)
    return seen is not None and seen.state not in "ZX"


def zombies_of(parent: int) -> set[int]:
    everybody = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {one.pid for one in everybody if one is not None and one.parent == parent and one.state == "Z"}


def marked(word: str) -> list[int]:
    """Living processes with this word among their arguments, whatever else they have cast off."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if word.encode() in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0") and lives(int(name)):
                found.append(int(name))
    return found


def add_service(root: Path, name: str, code: str) -> None:
    """An environment whose instances run a Python program: argv is `code.py ID`, nothing is probed."""
    folder = root / "config/environments" / name
    folder.mkdir(parents=True)
    command = ["venv/bin/python", "-u", "code.py", "{id}"]
    config = {"name": name, "service_type": "test", "command": command, "probe": {"type": "none"}}
    (folder / "config.json").write_text(json.dumps(config))
    write_quick_install(root / "build" / name, 'cp "$here/code.py" /ComfyUI/code.py')
    (root / "build" / name / "code.py").write_text(code)


def entry(number: int, environment: str = "comm", **more: object) -> dict[str, object]:
    return {"id": number, "port": free_port(), "name": f"i{number}", "environment": environment, **more}


@contextmanager
def daemon_on(folder: Path, instances: list[dict[str, object]], kind: type[Daemon] = Patient) -> Iterator[Daemon]:
    """A daemon, not started yet, on a fresh root with these instances; everything is ended afterwards."""
    one = kind(make_root(folder / "root", instances))
    try:
        yield one
    finally:
        one.end_everything()
