"""Reads everything that is watched: the config files and the content hashes of the build folders. Blocking.

Owns: which files belong to an environment and what counts as a change of them. Must not: parse or decide.
"""

import contextlib
import fnmatch
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from comfyd.host.files import mount_points, read_bounded
from comfyd.model.desired import ENVIRONMENT_NAME, WORKFLOW_NAME
from comfyd.model.paths import Paths
from comfyd.model.sources import ConfigFiles, EnvironmentFolder, SourceFile

SETTLED_S = 2.0
"""A file changed more recently is hashed again next time: its timestamp may not show the next change."""
_DROPPINGS = ("*~", ".*.sw?", ".#*", "#*#", "4913", "__pycache__")
_Stamp = tuple[int, int, int, int, int]
_HASHES: dict[str, tuple[_Stamp, bytes]] = {}
MAX_CACHED = 20_000


def read_config_files(paths: Paths) -> ConfigFiles:
    """One reading of all files. Never raises OSError: what cannot be read is a `problem` in the result."""
    mounts = mount_points()
    services = _source(paths.services_file, mounts)
    names, lost = _listed(paths.environments_dir)
    return ConfigFiles(
        instances=_source(paths.instances_file, mounts),
        environments=tuple(_environment(paths, name) for name in names),
        services=None if services.problem == "missing" else services,
        lost=lost,
    )


def _source(path: Path, mounts: frozenset[str] = frozenset()) -> SourceFile:
    read = read_bounded(path)
    mounted = read.data is not None and os.path.realpath(path) in mounts
    return SourceFile(
        str(path), read.data, read.problem, read.detail, read.inode, mounted, replaced=mounted and read.unlinked
    )


def _names(folder: Path) -> list[str]:
    return _listed(folder)[0]


def _listed(folder: Path) -> tuple[list[str], str | None]:
    """Folders that may be environments, or why they cannot be listed; hidden ones (editors, mounted config maps) are
    none."""
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if not entry.name.startswith(".") and entry.is_dir():
                        found.append(entry.name)
    except OSError as error:
        return [], f"{folder}: {error.strerror}"
    return sorted(found), None


def _environment(paths: Paths, name: str) -> EnvironmentFolder:
    folder = paths.environments_dir / name
    config = folder / "config.json"
    if not re.fullmatch(ENVIRONMENT_NAME, name):
        shown = name.encode("utf-8", "backslashreplace").decode()
        return EnvironmentFolder(shown, SourceFile(str(paths.environments_dir), None, "bad_name", f"{shown!r}"))
    build = paths.build_dir / name
    return EnvironmentFolder(
        name=name,
        config=_source(config),
        build_hash=content_hash(build),
        has_install=os.path.isfile(build / "install.sh"),
        fix_hash=_fix_hash(folder / "fix_dependencies.sh"),
        workflows=_workflows(folder / "workflows"),
    )


def _fix_hash(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        info = os.stat(path)
        if stat.S_ISREG(info.st_mode):
            return _file_hash(str(path), info, follow=True).hex()
    return None


def _workflows(folder: Path) -> tuple[str, ...]:
    found: list[str] = []
    with contextlib.suppress(OSError):
        found = [p.stem for p in folder.iterdir() if p.suffix == ".json" and os.path.isfile(p)]
    return tuple(sorted(name for name in found if re.fullmatch(WORKFLOW_NAME, name)))


def content_hash(folder: Path) -> str | None:
    """Hash of all files below `folder`: names, run bits and bytes, links by their target. None if it is no folder.

    Leftovers of editors do not count. Files that cannot be read count by their name alone.
    """
    if not os.path.isdir(folder):
        return None
    whole = hashlib.sha256()
    for path in sorted(_files(str(folder))):
        whole.update(os.fsencode(os.path.relpath(path, folder)) + b"\0" + _fact(path) + b"\0")
    return whole.hexdigest()


def _files(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_dropping(name)]
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (os.path.join(parent, name) for name in (*files, *linked) if not _is_dropping(name))


def _is_dropping(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _DROPPINGS)


def _fact(path: str) -> bytes:
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            return b"link " + os.fsencode(os.readlink(path))
        if stat.S_ISREG(info.st_mode):
            run = b"x " if info.st_mode & 0o100 else b"- "
            return run + _file_hash(path, info, follow=False)
    except OSError:
        return b"unreadable"
    return b"special"


def _file_hash(path: str, info: os.stat_result, *, follow: bool) -> bytes:
    """sha256 of a file's bytes; a file whose stamp has not moved since the last reading is not read again."""
    stamp = (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino, info.st_dev)
    known = _HASHES.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if max(info.st_mtime, info.st_ctime) < time.time() - SETTLED_S:
        if len(_HASHES) >= MAX_CACHED:
            _HASHES.clear()
        _HASHES[path] = (stamp, found)
    return found


def watched_dirs(paths: Paths) -> tuple[Path, ...]:
    """Existing directories to watch, each not recursively; for a missing one its nearest existing parent.

    The folder of a file is watched, not the file: replacing it by rename, and links that are swapped, stay visible. A
    file that is mounted by itself is watched as well: its edits happen in another folder, outside of the container.
    """
    wanted = [paths.instances_file.parent, paths.services_file.parent, paths.environments_dir, paths.build_dir]
    files = [Path(os.path.realpath(f)) for f in (paths.instances_file, paths.services_file)]
    wanted += [file.parent for file in files]
    for name in _names(paths.environments_dir):
        folder = paths.environments_dir / name
        wanted += [folder, folder / "workflows", *_folders(paths.build_dir / name)]
    mounted = {file for file in files if str(file) in mount_points() and file.is_file()}
    return tuple(sorted({_existing(one) for one in wanted} | mounted))


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, names, _ in os.walk(folder):
        names[:] = [name for name in names if not _is_dropping(name)]
        yield from (Path(parent, name) for name in names if not os.path.islink(os.path.join(parent, name)))


def _existing(path: Path) -> Path:
    while not os.path.isdir(path) and path != path.parent:
        path = path.parent
    return path
