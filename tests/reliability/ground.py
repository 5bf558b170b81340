"""One daemon on a root of its own and all that watches it. What a failed test saw is kept in one folder.

Owns: the watching and the keeping. Must not: know what happens to the daemon; that is each test's.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.daemon import REPOSITORY, Answer, Daemon, leftovers, make_root
from tests.ports import free_port
from tests.reliability.checks import check_database, check_journal
from tests.reliability.decoys import Decoys
from tests.reliability.sampler import Sampler, Seen

BOOT_S = 5.0
"""By then every process with our uuid is in the daemon's table or gone (V2), on a machine that does nothing else."""
FOREIGN = 9
"""Id of the instance whose port a decoy holds."""
QUIET = ("/health", "/api/comfyui/status")


class RecordedDaemon(Daemon):
    """Remembers every call as a line of history: what was asked, when, and what came back if anything did."""

    def __init__(self, root: Path, **environ: str) -> None:
        super().__init__(root, **environ)
        self.history: list[dict[str, Any]] = []

    def until(self, condition: Callable[[], Any], timeout_s: float = 20, what: str = "condition") -> None:
        super().until(condition, timeout_s * crowd(), what)

    def wait(self, timeout_s: float = 30) -> int:
        return super().wait(timeout_s * crowd())

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 60
    ) -> Answer:
        began, result = time.monotonic(), "timeout"
        try:
            answer = super().call(method, path, body, headers, timeout)
            result = f"{answer.status} {answer.body[:200].decode('utf-8', 'replace')}"
            return answer
        finally:
            if path not in QUIET:
                shown = body if not isinstance(body, bytes) else f"{len(body)} bytes"
                self.history.append({
                    "t_invoke": began, "t_return": time.monotonic(), "client": threading.current_thread().name,
                    "op": f"{method} {path}", "key": (headers or {}).get("Idempotency-Key"), "arg": shown,
                    "result": result,
                })  # fmt: skip


class Ground:
    """daemon, sampler, decoys, and the journal that the stand-ins write of their prompts."""

    def __init__(self, folder: Path, name: str, seed: int, daemon: RecordedDaemon, sampler: Sampler) -> None:
        self.folder, self.name, self.seed = folder, name, seed
        self.good = (daemon.root / "instances.json").read_text()
        self.daemon, self.sampler, self.decoys = daemon, sampler, Decoys(folder / "decoys")
        self.told: list[str] = []
        self.acknowledged: list[str] = []
        self.graph: Any = None
        self.kept: Path | None = None

    @property
    def root(self) -> Path:
        return self.daemon.root

    @property
    def database(self) -> Path:
        return self.root / "workspace/.comfyd/comfyd.db"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def tell(self, what: str) -> None:
        self.told.append(f"{time.monotonic():.3f} {what}")

    def leaders(self) -> dict[str, Seen]:
        """key -> the process that leads its tree."""
        return {one.key: one for one in self.sampler.ours() if one.pid == one.session}

    def unaccounted(self) -> set[int]:
        """Sessions of ours that the daemon does not show BOOT_S after a boot: orphans and duplicates."""
        deadline = time.monotonic() + BOOT_S * crowd()
        while True:
            ours = {one.session for one in self.sampler.ours()}
            left = ours
            with suppress(AssertionError, OSError):
                shown = set(self.daemon.pids().values())
                left = (ours - shown) & {one.session for one in self.sampler.ours()}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    def check_end(self) -> None:
        """Stop the daemon; nothing is left, nothing was seen that must not be, the database is whole."""
        assert self.daemon.stop() == 0
        assert leftovers(self.root) == []
        assert self.sampler.violations == []
        assert self.decoys.harmed() == []
        check_database(self.database)
        check_journal(self.journal)

    def keep(self) -> Path:
        """Copy all that tells of this run to a folder of its own, once. Returns it."""
        if self.kept is None:
            base = Path(os.environ.get("COMFYD_TEST_CACHE") or REPOSITORY / ".cache").absolute() / "reliability"
            self.kept = base / f"{self.name}-{self.seed}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
            self.kept.mkdir(parents=True)
            with suppress(OSError, AssertionError):
                (self.kept / "status.json").write_text(json.dumps(self.daemon.get("/api/comfyui/status"), indent=1))
            self.daemon.end_everything()
            self._copy(self.kept)
            print(f"kept in {self.kept} (replay with SEED={self.seed})", file=sys.stderr)
        return self.kept

    def _copy(self, place: Path) -> None:
        state = self.root / "workspace/.comfyd"
        for name in ("comfyd.db", "comfyd.db-wal", "run.journal"):
            with suppress(OSError):
                shutil.copy2(state / name, place / name)
        with suppress(OSError):
            shutil.copytree(self.root / "workspace/logs", place / "logs")
        for path in (self.daemon.out, self.root / "instances.json", self.journal):
            with suppress(OSError):
                shutil.copy2(path, place / path.name)
        samples = [{"at": at, "alive": [repr(one) for one in seen]} for at, seen in list(self.sampler.changes)]
        _write_lines(place / "samples.jsonl", samples)
        _write_lines(place / "history.jsonl", list(self.daemon.history))
        told = [*self.told, *self.sampler.violations, *self.decoys.harmed()]
        (place / "told.txt").write_text("\n".join(told) + "\n")


def crowd() -> float:
    """How many times slower than alone anything is here: what runs per core, between 1 and 6."""
    return min(6.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


@contextmanager
def ground(folder: Path, name: str, seed: int, instances: int = 2, **environ: str) -> Iterator[Ground]:
    """A root with so many instances and one whose port a decoy holds; not started. Everything is ended afterwards."""
    ports = [free_port() for _ in range(instances)]
    entries = [{"id": n, "port": p, "name": f"i{n}", "stop_grace_s": 3} for n, p in enumerate(ports)]
    foreign = free_port()
    entries.append({"id": FOREIGN, "port": foreign, "name": "foreign", "stop_grace_s": 3})
    root = make_root(folder / "root", entries)
    environ = {"FAKE_COMFYUI_JOURNAL": str(folder / "journal.jsonl"), "COMFYD_SHUTDOWN_DRAIN_S": "1", **environ}
    with Sampler(root, frozenset([*ports, foreign])) as sampler:
        one = Ground(folder, name, seed, RecordedDaemon(root, **environ), sampler)
        try:
            python = str(root / "workspace/ComfyUI-comm/venv/bin/python")
            one.decoys.start("port", [python, "main.py", "--port", str(foreign)], port=foreign)
            yield one
        except BaseException:
            one.keep()
            raise
        finally:
            one.daemon.end_everything()
            one.decoys.end()
