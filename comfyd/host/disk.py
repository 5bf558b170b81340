"""Space on file systems and sizes of folders. Reads only; blocking."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system below a path. Bytes for unprivileged programs; files: inodes left, -1 = not counted.

    device: tells two file systems apart. writable: by us, at the nearest folder that exists.
    """

    device: int
    free: int
    total: int
    files: int
    writable: bool


@dataclass(frozen=True, slots=True)
class Folder:
    """What lies below a folder. whole: False if there was too much to count."""

    bytes: int = 0
    files: int = 0
    largest: tuple[str, int] = ("", 0)
    whole: bool = True


def disk_of(path: Path) -> Disk | None:
    """The disk that `path` lies on or would lie on; None if nothing can be said."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        found = os.statvfs(place)
        device = place.stat().st_dev
    except OSError:
        return None
    files = found.f_favail if found.f_files else -1
    writable = os.access(place, os.W_OK) and not found.f_flag & os.ST_RDONLY
    return Disk(device, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, files, writable)


def folder_size(folder: Path, limit: int = 50_000) -> Folder:
    """Sizes of the regular files below `folder`, links not followed, at most `limit` of them."""
    total = count = 0
    largest = ("", 0)
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                info = os.lstat(os.path.join(parent, name))
            except OSError:
                continue
            count += 1
            total += info.st_blocks * 512
            largest = max(largest, (os.path.join(parent, name), info.st_size), key=lambda one: one[1])
            if count >= limit:
                return Folder(total, count, largest, whole=False)
    return Folder(total, count, largest)
