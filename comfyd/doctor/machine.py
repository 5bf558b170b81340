"""Checks of the machine: disks, state and log folders, GPUs, limits."""

import importlib.util
import os
import resource
import stat
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from comfyd.core.findings import FEW_FILES, MANY_LOGS, disk_finding, gpu_findings, size
from comfyd.doctor.scene import Scene
from comfyd.host.disk import disk_of, folder_size
from comfyd.host.download import RESERVE_BYTES
from comfyd.host.gpu import read_gpus
from comfyd.model.finding import Finding


def disks(scene: Scene) -> Iterable[Finding]:
    """Room on every disk that the workspace, the models, the state and the logs lie on."""
    paths = scene.paths
    seen: set[int] = set()
    for what, path in (
        ("workspace", paths.workspace), ("state", paths.state_dir), ("models", paths.models_dir),
        ("logs", paths.log_dir),
    ):  # fmt: skip
        found = disk_of(path)
        if found is None:
            message, hint = f"{path}: nothing can be read of its disk", "is it mounted?"
            yield Finding(name="disk", subject=what, level="error", message=message, hint=hint)
            continue
        if not found.writable:
            message = f"{path} cannot be written by uid {os.getuid()}"
            hint = "mount it writable, or give it to the user that comfyd runs as"
            yield Finding(name="disk", subject=what, level="error", message=message, hint=hint)
        if found.device not in seen or what in ("workspace", "state"):
            yield disk_finding(what, str(path), found.free, found.total, found.files, RESERVE_BYTES)
        seen.add(found.device)


def state(scene: Scene) -> Iterable[Finding]:
    """Whether comfyd's own folder is for its user alone, and how large its database is."""
    folder = scene.paths.state_dir
    try:
        info = folder.stat()
    except FileNotFoundError:
        yield Finding(name="state", level="ok", message=f"{folder} does not exist yet; the first run makes it")
        return
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o077 or info.st_uid not in (os.getuid(), 0):
        message = f"{folder} has mode {mode:04o} and belongs to uid {info.st_uid}: it holds tokens and tasks"
        yield Finding(name="state", level="warning", message=message, hint=f"chmod 700 {folder}")
        return
    database = scene.paths.database
    kept = f", database {size(database.stat().st_size)}" if database.is_file() else ", no database yet"
    yield Finding(name="state", level="ok", message=f"{folder}{kept}")


def logs(scene: Scene) -> Iterable[Finding]:
    """How large the logs are."""
    folder = scene.paths.log_dir
    found = folder_size(folder)
    message = f"{folder}: {found.files} files, {size(found.bytes)}"
    if found.bytes < MANY_LOGS:
        yield Finding(name="logs", level="ok", message=message)
        return
    name, largest = found.largest
    hint = f"remove what nobody reads; the largest is {Path(name).name} ({size(largest)})"
    yield Finding(name="logs", level="warning", message=message, hint=hint)


def gpus(scene: Scene) -> Iterable[Finding]:
    """What NVML says; without it, why it says nothing."""
    reading = read_gpus()
    missing = None
    if not reading.gpus and importlib.util.find_spec("pynvml") is None:
        missing = "no GPUs can be read: the package nvidia-ml-py is not installed (`pip install 'comfyd[gpu]'`)"
        if not Path("/dev/nvidiactl").exists():
            missing = None
    wanted = any(
        one.run and one.instance is not None and one.gpus != () and "--cpu" not in one.spec.trailing_argv
        for one in scene.wished.processes
    )
    views = [asdict(gpu) for gpu in reading.gpus]
    yield from gpu_findings(views, reading.problem, missing, wanted=wanted)


def limits(scene: Scene) -> Iterable[Finding]:
    """How many files may be open; of the daemon if it runs here, else of this shell."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    whose = "this shell"
    if scene.daemon_pid is not None:
        theirs = _open_files_of(scene.daemon_pid)
        if theirs is not None:
            soft, whose = theirs, "the daemon"
    message = f"{whose} may have {soft} files open"
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        yield Finding(name="limits", level="ok", message=message)
    else:
        yield Finding(name="limits", level="warning", message=message, hint="raise `ulimit -n` to 4096 or more")


def _open_files_of(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("Max open files")), [])
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else None
