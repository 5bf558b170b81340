"""The install record of one environment: what the latest try did, on disk, so that the next boot knows.

Owns: `workspace/.comfyd/installs/<env>.json`. Must not: say whether an environment is installed (its marker does).
"""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from comfyd.host.files import atomic_write, read_bounded
from comfyd.model.base import Condition, Frozen
from comfyd.model.observed import InstallStep
from comfyd.model.paths import Paths

MARKER = ".comfyd-environment.json"
STEPS = ("validate", "find_script", "copy", "rewrite", "run_script", "link_models", "nodes_and_models", "fix", "verify")
"""The nine steps of the contract, in order."""


class _Stored(Frozen):
    """A newer version may have written more keys: they are not a reason to build everything again."""

    model_config = ConfigDict(extra="ignore")


Stored = TypeVar("Stored", bound=_Stored)


class InstallerProcess(_Stored):
    """The leader of the script that runs now. starttime: clock ticks since boot."""

    pid: int
    starttime: int
    uuid: str


class InstallRecord(_Stored):
    """state: running | done | failed | interrupted | conflict. Times: _at wall seconds, _mono CLOCK_BOOTTIME seconds.

    failures counts consecutive failed tries of failed_fingerprint; failed_mono belongs to boot_id.
    uuid: in the environment of every process of this try; process: the script that runs now.
    models_failed: the models fingerprint whose download failed (the tree itself is installed).
    """

    environment: str
    state: Literal["running", "done", "failed", "interrupted", "conflict"] = "running"
    fingerprint: str = ""
    generation: int | None = None
    started_at: float = 0.0
    finished_at: float | None = None
    steps: tuple[InstallStep, ...] = tuple(InstallStep(name=name) for name in STEPS)
    progress: float | None = None
    uuid: str = ""
    process: InstallerProcess | None = None
    boot_id: str = ""
    failures: int = 0
    failed_fingerprint: str = ""
    failed_mono: float | None = None
    models_failed: str = ""
    condition: Condition | None = None
    conditions: tuple[Condition, ...] = ()
    last_lines: tuple[str, ...] = ()
    log: str = ""


class Marker(_Stored):
    """`.comfyd-environment.json` inside a finished tree: without it nothing is installed.

    nodes: declared node -> commit. shipped: nodes that the build script brought. carried: nodes that a user put into
    the generation before. models_skipped: SKIP_MODEL_DOWNLOAD was on.
    """

    environment: str
    generation: int
    fingerprint: str
    models_fingerprint: str = ""
    models_skipped: bool = False
    flags: tuple[str, ...] = ()
    nodes: dict[str, str] = Field(default_factory=dict)
    shipped: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    adopted: bool = False
    fix_hash: str | None = None
    installed_at: float


def record_path(paths: Paths, env: str) -> Path:
    return paths.state_dir / "installs" / f"{env}.json"


def load_record(paths: Paths, env: str) -> InstallRecord | None:
    """None if there is none or it cannot be read (then the trees alone say what is)."""
    return _load(InstallRecord, record_path(paths, env))


def save_record(paths: Paths, record: InstallRecord) -> None:
    path = record_path(paths, record.environment)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(path, record.model_dump_json(indent=1).encode(), mode=0o600)


def load_marker(tree: Path) -> Marker | None:
    return _load(Marker, tree / MARKER)


def save_marker(tree: Path, marker: Marker) -> None:
    atomic_write(tree / MARKER, marker.model_dump_json(indent=1).encode())


def _load(kind: type[Stored], path: Path) -> Stored | None:
    data = read_bounded(path).data
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        return None
