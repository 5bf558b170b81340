"""The state of one try: paths, variables, results so far, and its record on disk.

Owns: how a step begins, ends and fails in the install record. Must not: do any step's work.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread

from comfyd.environments.failure import InstallFailed
from comfyd.environments.log import append_text
from comfyd.environments.record import STEPS, InstallerProcess, InstallRecord, save_record
from comfyd.failpoint import failpoint
from comfyd.host.clock import wall
from comfyd.model.base import Condition
from comfyd.model.desired import EnvironmentSpec
from comfyd.model.observed import InstallStep
from comfyd.model.paths import Paths
from comfyd.settings import Settings

WEIGHTS = dict(zip(STEPS, (1, 1, 1, 1, 50, 2, 36, 4, 4), strict=True))
_PROGRESS_STEP = 0.01

Report = Callable[[InstallRecord], None]
"""Called with the record after every change: on the loop, must not block."""


@dataclass(slots=True)
class Build:
    """One try of one environment. Steps run one after another and write their results here."""

    spec: EnvironmentSpec
    fingerprint: str
    paths: Paths
    settings: Settings
    environ: Mapping[str, str]
    report: Report
    record: InstallRecord
    generation: int = 0
    uuid: str = field(default_factory=lambda: uuid4().hex)
    flags: frozenset[str] = frozenset()
    nodes: dict[str, str] = field(default_factory=dict)
    shipped: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    conditions: list[Condition] = field(default_factory=list)
    model_conditions: list[Condition] = field(default_factory=list)

    @property
    def tree(self) -> Path:
        return self.paths.generation(self.spec.name, self.generation)

    @property
    def scratch(self) -> Path:
        """Private folder (0700) of the rewritten scripts."""
        return self.paths.state_dir / "build" / f"{self.spec.name}.{self.uuid}"

    @property
    def log(self) -> Path:
        return self.paths.install_log(self.spec.name)

    async def save(self, **changes: object) -> None:
        """Change the record, on disk first, then for whoever watches."""
        self.record = self.record.model_copy(update=changes)
        await anyio.to_thread.run_sync(save_record, self.paths, self.record)
        self.report(self.record)

    async def started(self, pid: int, starttime: int) -> None:
        """The script runs: a next boot can find it by its uuid."""
        await self.save(process=InstallerProcess(pid=pid, starttime=starttime, uuid=self.uuid))

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Record begin, end and result of one step."""
        begun = wall()
        append_text(self.log, f"# comfyd: {self.spec.name}: step {STEPS.index(name) + 1} of {len(STEPS)}: {name}\n")
        await self._set(InstallStep(name=name, state="running", started_at=begun))
        try:
            yield
        except BaseException as error:
            message = (error.message if isinstance(error, InstallFailed) else type(error).__name__)[:500]
            append_text(self.log, f"# comfyd: {self.spec.name}: {name} failed: {message}\n")
            with anyio.CancelScope(shield=True):
                await self._set(
                    InstallStep(name=name, state="failed", started_at=begun, finished_at=wall(), message=message)
                )
            raise
        await self._set(InstallStep(name=name, state="done", started_at=begun, finished_at=wall()))
        failpoint("step_done")

    async def skip(self, names: Iterable[str], why: str) -> None:
        wanted = set(names)
        skipped = (InstallStep(name=s.name, state="skipped", message=why) if s.name in wanted else s for s in self._all)
        await self.save(steps=tuple(skipped))

    @property
    def _all(self) -> tuple[InstallStep, ...]:
        return self.record.steps

    async def _set(self, step: InstallStep) -> None:
        steps = tuple(step if s.name == step.name else s for s in self._all)
        await self.save(steps=steps, progress=_share(steps))

    def advance(self, name: str, share: float) -> None:
        """`share` (0..1) of a running step is done; shown, not written."""
        progress = min(1.0, _share(self._all) + WEIGHTS[name] / 100 * share)
        if abs(progress - (self.record.progress or 0.0)) >= _PROGRESS_STEP:
            self.record = self.record.model_copy(update={"progress": progress})
            self.report(self.record)


def _share(steps: tuple[InstallStep, ...]) -> float:
    return sum(WEIGHTS[s.name] for s in steps if s.state in ("done", "skipped")) / 100
