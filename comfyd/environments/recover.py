"""What a killed daemon left of an install: processes are ended, finished trees get their link, others are set aside.

Owns: the state of an environment's trees at boot. Must not: start an install or touch a tree that the link names.
"""

import shutil

import anyio.to_thread

from comfyd.environments.install import env_lock, interrupted
from comfyd.environments.record import InstallRecord, load_marker, load_record, save_record
from comfyd.environments.tree import current, flip, generations, set_aside
from comfyd.errors import LockHeldError
from comfyd.host.clock import wall
from comfyd.host.command import end_processes
from comfyd.model.paths import Paths


async def recover(paths: Paths, env: str) -> None:
    """Bring one environment to rest. Does nothing while another process installs it."""
    try:
        with env_lock(paths, env):
            record = await anyio.to_thread.run_sync(load_record, paths, env)
            if record is not None and record.state == "running" and record.uuid:
                await end_processes(record.uuid)
            await anyio.to_thread.run_sync(_settle, paths, env, record)
    except LockHeldError:
        return


def _settle(paths: Paths, env: str, record: InstallRecord | None) -> None:
    running = record if record is not None and record.state == "running" else None
    done = running is not None and _roll_forward(paths, env, running)
    here = current(paths, env)
    for number in generations(paths, env):
        if number != here.generation and load_marker(paths.generation(env, number)) is None:
            set_aside(paths, env, number)
    for folder in (paths.state_dir / "build").glob(f"{env}.*"):
        shutil.rmtree(folder, ignore_errors=True)
    if running is not None:
        ends = {"finished_at": wall(), "process": None, "progress": 1.0 if done else None}
        state = {"state": "done", "condition": None, "failures": 0} if done else {"state": "interrupted"}
        why = {} if done else {"condition": interrupted()}
        save_record(paths, running.model_copy(update={**ends, **state, **why}))


def _roll_forward(paths: Paths, env: str, record: InstallRecord) -> bool:
    """A marker is written only into a verified tree: what is missing is at most the link."""
    if record.generation is None:
        return False
    here = current(paths, env)
    if here.generation == record.generation:
        return here.marker is not None and here.marker.fingerprint == record.fingerprint
    marker = load_marker(paths.generation(env, record.generation))
    if marker is None or marker.fingerprint != record.fingerprint or here.kind in ("foreign", "blocked"):
        return False
    flip(paths, env, record.generation)
    return True
