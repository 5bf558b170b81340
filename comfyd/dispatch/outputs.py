"""Result files of tasks: linked from the instance's folder on this host, fetched over HTTP otherwise.

Owns: `paths.outputs/<task id>/<n>-<name>`. Names come from ComfyUI and are never trusted: no way out of a folder, no
symlink followed. Must not: decide what a missing file means for a task.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from comfyd.dispatch.comfy import ComfyClient, NotServed
from comfyd.dispatch.comfy_history import OutputFile
from comfyd.host.files import fsync_dir

_TYPES = ("output", "temp", "input")
_UNSAFE = re.compile(r"[^\w.-]+")
Planned = tuple[tuple[str, ...], Path]
"""Path components below a root, and where the file is stored."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def checked_parts(file: OutputFile) -> tuple[str, ...]:
    """Sub-folders and file name as single path components. Raises NotServed if one of them is none."""
    parts = (*(p for p in file.subfolder.split("/") if p), file.filename)
    bad = any(p in ("", ".", "..") or "/" in p or "\\" in p or not p.isprintable() for p in parts)
    if bad or file.subfolder.startswith("/") or file.type not in _TYPES:
        raise NotServed(
            f"output {file.type}:{file.subfolder}/{file.filename} names a place outside of its folder"[:500]
        )
    return parts


def stored_name(number: int, filename: str) -> str:
    """`<n>-<name>` with nothing but letters, digits, `_`, `.` and `-`, at most 120 characters."""
    stem, dot, end = filename.rpartition(".")
    stem, end = (stem, f".{_UNSAFE.sub('_', end)[:16]}") if dot and stem else (filename, "")
    return f"{number}-{_UNSAFE.sub('_', stem).lstrip('.')[:80] or 'file'}{end}"


async def store_outputs(
    files: Sequence[OutputFile], folder: Path, roots: Mapping[str, Path], client: ComfyClient
) -> list[dict[str, Any]]:
    """Store every file below `folder` (made if needed) and say what was stored, in order.

    Raises NotServed (a declared file is not there), Unanswered (ComfyUI gave no answer), OSError (our disk).
    """
    if not files:
        return []
    planned = [(checked_parts(file), folder / stored_name(n, file.filename)) for n, file in enumerate(files)]
    missing, sizes = await asyncio.to_thread(_link_all, files, planned, folder, roots)
    if missing:
        for n in missing:
            await _download(client, files[n], planned[n][1])
        sizes = await asyncio.to_thread(_settle, folder, planned)
    return [
        {
            "filename": file.filename,
            "subfolder": file.subfolder,
            "type": file.type,
            "node": file.node,
            "path_name": target.name,
            "size": size,
        }
        for file, (_, target), size in zip(files, planned, sizes, strict=True)
    ]


def _link_all(
    files: Sequence[OutputFile], planned: Sequence[Planned], folder: Path, roots: Mapping[str, Path]
) -> tuple[list[int], list[int]]:
    """Link what lies on this host. Returns the positions of the rest, and if there is none the sizes."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    missing = [
        n
        for n, (parts, target) in enumerate(planned)
        if (root := roots.get(files[n].type)) is None or not link_below(root, parts, target)
    ]
    return missing, ([] if missing else _settle(folder, planned))


def _settle(folder: Path, planned: Sequence[Planned]) -> list[int]:
    """Make the names durable; returns the sizes."""
    fsync_dir(folder)
    return [target.stat().st_size for _, target in planned]


def link_below(root: Path, parts: Sequence[str], target: Path) -> bool:
    """Hard-link (or copy) the regular file `root`/`parts` to `target`; False if there is no such file to be had.

    `root` may be a link; nothing below it may.
    """
    try:
        source = _open_below(root, parts)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return False
        with _replacing(target) as (place, temporary):
            try:
                # The opened file itself, whatever its name stands for by now.
                os.link(f"/proc/self/fd/{source}", temporary, dst_dir_fd=place, follow_symlinks=True)
            except OSError:  # another file system, or links are not allowed there
                _copy(source, place, temporary)
            os.fsync(source)
        return True
    finally:
        os.close(source)


def _open_below(root: Path, parts: Sequence[str]) -> int:
    here = os.open(root, _FOLDER)
    try:
        for part in parts[:-1]:
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def _create(place: int, name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=place)


def _copy(source: int, place: int, name: str) -> None:
    with os.fdopen(os.dup(source), "rb") as reader, os.fdopen(_create(place, name), "wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[tuple[int, str]]:
    """(descriptor of the folder, name to write to); afterwards that file stands at `target`, or nowhere."""
    place = os.open(target.parent, _FOLDER | os.O_NOFOLLOW)
    temporary = f".{secrets.token_hex(8)}.part"
    try:
        yield place, temporary
        os.replace(temporary, target.name, src_dir_fd=place, dst_dir_fd=place)
    finally:
        with contextlib.suppress(FileNotFoundError):  # also left over when both names are one file already
            os.unlink(temporary, dir_fd=place)
        os.close(place)


async def _download(client: ComfyClient, file: OutputFile, target: Path) -> None:
    async with client.view(file) as chunks:
        with _replacing(target) as (place, temporary), os.fdopen(_create(place, temporary), "wb") as writer:
            async for chunk in chunks:
                await asyncio.to_thread(writer.write, chunk)
            await asyncio.to_thread(_flush, writer.fileno(), writer.flush)


def _flush(descriptor: int, flush: Any) -> None:
    flush()
    os.fsync(descriptor)
