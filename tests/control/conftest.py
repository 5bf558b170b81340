"""A supervisor in a temporary root, driven by hand, with real processes."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

from comfyd.control.pen import Pen
from comfyd.control.supervise import Supervisor
from comfyd.host import clock
from comfyd.live import Live
from comfyd.model.desired import ProbeSpec
from comfyd.model.observed import ObservedProcess, ObservedState
from comfyd.model.paths import Paths
from comfyd.model.plan import StartProcess, StopProcess
from comfyd.model.process import DesiredProcess, ProcessSpec
from comfyd.store.open import open_stores


class Bench:
    """One supervisor and the calls a test makes on it."""

    def __init__(self, root: Path, supervisor: Supervisor, live: Live) -> None:
        self.root = root
        self.supervisor = supervisor
        self.live = live

    def wish(
        self, key: str, code: str, *, port: int | None = None, grace: float = 2.0, **more: object
    ) -> DesiredProcess:
        spec = ProcessSpec(
            key=key,
            argv=(sys.executable, "-u", "-c", code),
            cwd=str(self.root),
            port=port,
            probe=ProbeSpec(type="tcp" if port else "none", period_s=0.1),
            stop_grace_s=grace,
            log=str(self.root / "logs" / f"{key.replace('/', '_')}.log"),
            pid_file=str(self.root / "logs" / f"{key.replace('/', '_')}.pid"),
        )
        return DesiredProcess(key=key, spec=spec, fingerprint="f1", run=True, **more)  # type: ignore[arg-type]

    async def start(self, *wishes: DesiredProcess) -> None:
        await self.supervisor.start([StartProcess(w, frozenset(), "test") for w in wishes])

    def stop(self, key: str, drain_s: float = 0.0) -> None:
        self.supervisor.stop(StopProcess(key, self.seen(key).generation, drain_s, "test"))

    def seen(self, key: str) -> ObservedProcess:
        found = self.state().process(key)
        assert found is not None
        return found

    def state(self) -> ObservedState:
        return self.supervisor.snapshot(())

    async def until(self, ask: Callable[[], bool], timeout: float = 10.0) -> None:
        """Wait for a fact; the deadline fails the test."""
        with anyio.fail_after(timeout):
            while not ask():
                await anyio.sleep(0.01)


@contextlib.asynccontextmanager
async def open_bench(root: Path) -> AsyncIterator[Bench]:
    """Enter a supervisor on `root`; leaving the block leaves the processes (as a daemon that is killed would)."""
    paths = Paths.under(root)
    paths.state_dir.mkdir(parents=True, exist_ok=True)
    live = Live()
    async with open_stores(paths.database, clock.boot_id(), 1000) as stores, anyio.create_task_group() as tasks:
        pen = Pen(stores.node)
        supervisor = Supervisor(paths, live, pen, lambda: None)
        await supervisor.open(tasks, await stores.node.facts("crash/"))
        try:
            yield Bench(root, supervisor, live)
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await pen.flush()
                await supervisor.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def environment_of(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(part.split("=", 1) for part in raw if "=" in part)


def end(pid: int) -> None:
    """End a process that this test started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
