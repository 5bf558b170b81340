"""Step 6: models shared by all environments, data that outlives generations.

Owns: merging a tree's `models`, `input`, `output`, `user` into their shared places and the links that stand there.
Must not: overwrite or lose a file. What cannot be merged stays beside the link as `<name>.not-merged`. Blocking.
"""

import errno
import filecmp
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from comfyd.environments.failure import InstallFailed
from comfyd.failpoint import failpoint
from comfyd.model.base import Condition
from comfyd.model.desired import EnvironmentSpec
from comfyd.model.paths import Paths

MODEL_TYPES = ("checkpoints", "loras", "controlnet", "vae", "clip_vision", "ipadapter", "instantid", "insightface")
DATA_FOLDERS = ("input", "output", "user")


def make_model_folders(models: Path, types: Iterable[str]) -> None:
    """The standard folders and those that a config names (their names are checked by the caller)."""
    for name in (*MODEL_TYPES, *types):
        (models / name).mkdir(parents=True, exist_ok=True)


def link_shared(spec: EnvironmentSpec, paths: Paths, tree: Path) -> list[Condition]:
    """Share models and data of a fresh tree. Raises InstallFailed if a copy fails (the source is kept)."""
    conditions: list[Condition] = []
    if spec.mode == "extra_model_paths":
        _write_model_paths(paths.models_dir, tree)
    else:
        conditions += share(tree / "models", paths.models_dir)
    for name in DATA_FOLDERS:
        conditions += share(tree / name, paths.environment_data(spec.name) / name)
    return conditions


def share(place: Path, shared: Path) -> list[Condition]:
    """Merge the directory `place` into `shared` and put a relative link to it there."""
    try:
        shared.mkdir(parents=True, exist_ok=True)
        conditions = _clear(place, shared)
        failpoint("merged")
        os.symlink(os.path.relpath(shared.resolve(), place.parent.resolve()), place)
    except OSError as error:
        message = f"{place.name} could not be merged into {shared}: {error.strerror} ({error.filename})"
        hint = "free disk space or correct its permissions"
        raise InstallFailed(message, reason="merge_failed", hint=hint) from error
    return conditions


def _clear(place: Path, shared: Path) -> list[Condition]:
    if place.is_symlink():
        place.unlink()
    if not os.path.lexists(place):
        return []
    left = merge(place, shared) if place.is_dir() else [place.name]
    if not left:
        shutil.rmtree(place)
        return []
    aside = place.with_name(place.name + ".not-merged")
    place.rename(aside)
    shown = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
    message = f"{len(left)} files differ from those of the same name in {shared} and were kept in {aside}: {shown}"
    return [Condition("not_merged", "exists", message, f"compare them, then remove {aside}")]


def merge(source: Path, target: Path) -> list[str]:
    """Move every file of `source` to `target` where nothing stands yet. Returns the paths that stayed.

    A file that is there with the same content is dropped. Raises OSError on a copy error; what was not moved by then
    is still in `source`.
    """
    left: list[str] = []
    for entry in sorted(os.scandir(source), key=lambda e: e.name):
        here, there = source / entry.name, target / entry.name
        mode = here.lstat().st_mode
        if stat.S_ISDIR(mode):
            if not os.path.lexists(there):
                there.mkdir()
            if there.is_dir() and not there.is_symlink():
                left += [f"{entry.name}/{name}" for name in merge(here, there)]
            else:
                left.append(entry.name)
        elif not (_move_link(here, there) if stat.S_ISLNK(mode) else _move_file(here, there)):
            left.append(entry.name)
    return left


def _move_link(here: Path, there: Path) -> bool:
    text = os.readlink(here)
    if os.path.lexists(there):
        return there.is_symlink() and os.readlink(there) == text
    if not os.path.isabs(text) and not here.exists() and not (there.parent / text).exists():
        return False
    os.symlink(text, there)
    here.unlink()
    return True


def _move_file(here: Path, there: Path) -> bool:
    if not here.is_file():
        return False
    if os.path.lexists(there):
        return there.is_file() and filecmp.cmp(here, there, shallow=False)
    try:
        os.link(here, there, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        _copy_file(here, there)
    here.unlink()
    return True


def _copy_file(here: Path, there: Path) -> None:
    """Across file systems: the final name appears only with the whole content on disk."""
    temporary = there.with_name(f".{there.name}.{secrets.token_hex(4)}.tmp")
    try:
        shutil.copy2(here, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(there)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_model_paths(models: Path, tree: Path) -> None:
    """`mode: extra_model_paths`: the tree keeps its own models folder and reads the shared one as well."""
    place = tree / "extra_model_paths.yaml"
    if place.exists():
        message = f"the build script brings its own {place.name}, so comfyd cannot write one"
        raise InstallFailed(message, reason="extra_model_paths_taken", hint="use `mode: link`")
    folders = sorted(e.name for e in os.scandir(models) if e.is_dir()) if models.is_dir() else []
    section = {"base_path": str(models), **{name: f"{name}/" for name in dict.fromkeys((*MODEL_TYPES, *folders))}}
    # JSON is YAML, and quotes every path as it has to be.
    place.write_text(json.dumps({"comfyd": section}, indent=1) + "\n")
