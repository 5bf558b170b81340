"""Generation trees on disk: which there are, which one the link names, setting one aside, flipping, pruning.

Owns: `workspace/.ComfyUI-<env>.<n>` and the link `workspace/ComfyUI-<env>`. Must not: look into a tree beyond its
marker, or ever remove or replace a directory that somebody else put where the link belongs. Blocking.
"""

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comfyd.core.since import carried
from comfyd.environments.failure import InstallFailed
from comfyd.environments.record import MARKER, InstallRecord, Marker, load_marker, load_record
from comfyd.failpoint import failpoint
from comfyd.host.clock import boot_id
from comfyd.host.files import flip_link
from comfyd.model.base import Condition
from comfyd.model.observed import ObservedEnvironment
from comfyd.model.paths import Paths

KEEP = 2


@dataclass(frozen=True, slots=True)
class Current:
    """What stands at `workspace/ComfyUI-<env>`. kind: none | generation (our link) | foreign (a directory, or a link
    to one, that we did not make) | blocked (anything else). marker: of the tree, None = not installed."""

    kind: Literal["none", "generation", "foreign", "blocked"]
    tree: Path | None = None
    generation: int | None = None
    marker: Marker | None = None


def current(paths: Paths, env: str) -> Current:
    link = paths.environment_link(env)
    if link.is_symlink():
        target = Path(os.path.normpath(link.parent / os.readlink(link)))
        number = _number(env, target.name) if target.parent == link.parent else None
        if number is not None:
            marker = _own_marker(target, env) if target.is_dir() else None
            return Current("generation", target, number, marker)
        if not link.exists():
            return Current("none")
    if not os.path.lexists(link):
        return Current("none")
    if not link.is_dir():
        return Current("blocked")
    marker = _own_marker(link, env)
    return Current("foreign", link, marker.generation if marker else None, marker)


def _own_marker(tree: Path, env: str) -> Marker | None:
    marker = load_marker(tree)
    return marker if marker is not None and marker.environment == env else None


def _number(env: str, name: str) -> int | None:
    match = re.fullmatch(rf"\.ComfyUI-{re.escape(env)}\.(\d{{1,9}})", name)
    return int(match[1]) if match else None


def generations(paths: Paths, env: str) -> list[int]:
    """Numbers of the trees that are not set aside, ascending."""
    with contextlib.suppress(FileNotFoundError):
        found = (_number(env, name) for name in os.listdir(paths.workspace))
        return sorted(number for number in found if number is not None)
    return []


def next_generation(paths: Paths, env: str) -> int:
    """One more than any number in use, failed ones included."""
    with contextlib.suppress(FileNotFoundError):
        found = (_number(env, name.removesuffix(".failed")) for name in os.listdir(paths.workspace))
        return max((number for number in found if number is not None), default=0) + 1
    return 1


def set_aside(paths: Paths, env: str, number: int) -> None:
    """Rename a tree that did not come to its end to `….failed` and remove the ones set aside before it."""
    tree = paths.generation(env, number)
    if not os.path.lexists(tree):
        return
    failed = tree.with_name(tree.name + ".failed")
    if os.path.lexists(failed):
        shutil.rmtree(failed, ignore_errors=True)
    tree.rename(failed)
    failpoint("tree_set_aside")
    for name in os.listdir(paths.workspace):
        older = name.removesuffix(".failed")
        if name != older and older != tree.name and _number(env, older) is not None:
            shutil.rmtree(paths.workspace / name, ignore_errors=True)


def flip(paths: Paths, env: str, number: int) -> None:
    """Point the environment's link at a generation. Raises InstallFailed if something else stands there."""
    if current(paths, env).kind in ("foreign", "blocked"):
        raise in_the_way(paths, env)
    flip_link(paths.environment_link(env), paths.generation(env, number).name)


def in_the_way(paths: Paths, env: str) -> InstallFailed:
    link = paths.environment_link(env)
    message = f"{link} is not a link that comfyd made and is never replaced"
    return InstallFailed(message, reason="directory_in_the_way", hint=f"move {link} elsewhere", state="conflict")


def prune(paths: Paths, env: str) -> None:
    """Remove generations older than the last two that no process runs in."""
    here = current(paths, env)
    for number in generations(paths, env)[:-KEEP]:
        tree = paths.generation(env, number)
        if number != here.generation and not _in_use(tree):
            # Without its marker a half-removed tree can never be taken for an installed one.
            set_aside(paths, env, number)
            shutil.rmtree(tree.with_name(tree.name + ".failed"), ignore_errors=True)


def _in_use(tree: Path) -> bool:
    inside = str(tree.resolve()) + os.sep
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if (os.readlink(f"/proc/{pid}/cwd") + os.sep).startswith(inside):
                return True
    return False


def signature(paths: Paths, env: str) -> tuple[object, ...]:
    """Changes whenever the link, the directory in its place, or the marker below it changes. A few system calls."""
    link = paths.environment_link(env)
    found: list[object] = []
    with contextlib.suppress(OSError):
        found.append(os.readlink(link))
    for path in (link, link / MARKER):
        try:
            info = path.lstat()
        except OSError:
            found.append(None)
        else:
            found += [info.st_ino, info.st_mtime_ns]
    return tuple(found)


def known_environments(paths: Paths) -> list[str]:
    """Names that left anything on disk: links, directories, generations, records."""
    names: set[str] = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(paths.workspace):
            match = re.fullmatch(r"(?:ComfyUI-|\.ComfyUI-)([a-z0-9][a-z0-9-]{0,62})(?:\.\d+(?:\.failed)?)?", name)
            names |= {match[1]} if match else set()
    with contextlib.suppress(FileNotFoundError):
        names |= {path.stem for path in (paths.state_dir / "installs").glob("*.json")}
    return sorted(names)


def observe(paths: Paths, env: str, *, skip_models: bool) -> ObservedEnvironment:
    """The environment as its link, marker and record say. Never `installing`: that is known to the installer only."""
    here, record = current(paths, env), load_record(paths, env)
    base = _from_record(env, record)
    marker = here.marker
    if here.kind == "blocked":
        problem = in_the_way(paths, env)
        condition = Condition("conflict", problem.reason, problem.message, problem.hint)
        return base.model_copy(update={"state": "conflict", "condition": condition})
    if here.tree is None or marker is None:
        return base.model_copy(update={"foreign": here.kind == "foreign"})
    models = "" if marker.models_skipped and not skip_models else marker.models_fingerprint
    return base.model_copy(
        update={
            "state": "installed",
            "installed": True,
            "generation": marker.generation,
            "tree": str(here.tree.resolve()),
            "fingerprint": marker.fingerprint,
            "models_fingerprint": models,
            "flags": frozenset(marker.flags),
            "nodes": marker.nodes,
            "conditions": (*carried(marker.conditions, (), marker.installed_at), *base.conditions),
        }
    )


def _from_record(env: str, record: InstallRecord | None) -> ObservedEnvironment:
    if record is None:
        return ObservedEnvironment(name=env)
    failed = record.state == "failed"
    return ObservedEnvironment(
        name=env,
        state="failed" if failed else "absent",
        failed_fingerprint=record.failed_fingerprint,
        failures=record.failures,
        failed_mono=record.failed_mono if record.boot_id == boot_id() else None,
        condition=record.condition,
        conditions=carried(record.conditions, (), record.finished_at or record.started_at),
        steps=record.steps,
        progress=record.progress,
        log=record.log,
        last_lines=record.last_lines,
    )
