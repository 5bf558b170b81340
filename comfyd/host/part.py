"""The `.part` file of one download, its journal, and the checks before it gets its final name. Blocking.

Owns: what is on disk during a download. Every file is reached through a folder descriptor that followed no links.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyd.failpoint import failpoint
from comfyd.host.clock import boot_id
from comfyd.host.files import atomic_write, read_bounded

SYNC_EVERY = 64 * 1024 * 1024
_HEADER_MAX = 100 * 1024 * 1024
_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class WrongContent(Exception):
    """The bytes are not the file that was asked for. permanent: asking again will not help."""

    def __init__(self, reason: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.permanent = permanent


@dataclass(frozen=True, slots=True)
class Folder:
    """An open folder; close it with `close`."""

    fd: int

    @classmethod
    def below(cls, root: Path, names: tuple[str, ...]) -> "Folder":
        """Open (and make) root/names. The root may be a link, nothing below it. Raises OSError."""
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in names:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
        return cls(fd)

    def free_bytes(self) -> int:
        info = os.fstatvfs(self.fd)
        return info.f_bavail * info.f_frsize


class Part:
    """size: bytes on disk. etag, total: of the answer they come from (etag only if strong)."""

    def __init__(self, folder: Folder, name: str, journal: Path, url: str) -> None:
        self.folder = folder
        self.name = name
        self.size = 0
        self.etag: str | None = None
        self.total: int | None = None
        self._journal = journal
        self._url = hashlib.sha256(url.encode()).hexdigest()
        self._fd = -1
        self._synced = 0

    def open(self) -> None:
        """Open the part and find out how much of it can be kept."""
        self._fd = os.open(self.name, _FILE_FLAGS, 0o644, dir_fd=self.folder.fd)
        known = self._read_journal()
        length = os.fstat(self._fd).st_size
        if known.get("url") != self._url or not isinstance(known.get("etag"), str):
            return self.restart()
        # After a power cut only what was synced is surely what we wrote.
        sure = length if known.get("boot_id") == boot_id() else min(length, int(known.get("synced", 0)))
        os.ftruncate(self._fd, sure)
        self.size, self.etag, self.total = sure, known["etag"], known.get("total")
        return None

    def _read_journal(self) -> dict[str, Any]:
        try:
            known = json.loads(read_bounded(self._journal).data or b"{}")
        except ValueError:
            return {}
        return known if isinstance(known, dict) else {}

    def resume_at(self) -> int:
        """Where the next request continues; 0 unless a strong ETag can guard it."""
        return self.size if self.etag else 0

    def begin(self, etag: str | None, total: int | None) -> None:
        """A body follows. Remembers what it belongs to."""
        self.etag = etag if etag and etag.startswith('"') else None
        self.total = total
        self._write_journal()

    def _write_journal(self) -> None:
        state = {"url": self._url, "etag": self.etag, "total": self.total, "synced": self._synced, "boot_id": boot_id()}
        self._journal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(self._journal, json.dumps(state).encode(), mode=0o600)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, self.size)
            self.size += done
            view = view[done:]
        if self.size - self._synced >= SYNC_EVERY:
            os.fdatasync(self._fd)
            self._synced = self.size
            self._write_journal()

    def restart(self) -> None:
        """Forget what came so far."""
        os.ftruncate(self._fd, 0)
        self.size = self._synced = 0
        self.etag = self.total = None
        self._journal.unlink(missing_ok=True)

    def sync(self) -> None:
        os.fsync(self._fd)

    def read(self, length: int, offset: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def sha256(self) -> str:
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def rename(self, final: str) -> None:
        os.replace(self.name, final, src_dir_fd=self.folder.fd, dst_dir_fd=self.folder.fd)
        os.fsync(self.folder.fd)
        self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        """An empty part is removed; one that can be continued stays."""
        if self._fd >= 0:
            if self.size == 0:
                with contextlib.suppress(OSError):
                    os.unlink(self.name, dir_fd=self.folder.fd)
            os.close(self._fd)
            self._fd = -1
        os.close(self.folder.fd)


def install(part: Part, final: str, size: int | None, sha256: str | None) -> str | None:
    """Check the complete part, put it on disk, give it its name. Returns the sha256 if one was asked for."""
    part.sync()
    failpoint("fsynced")
    if size is not None and part.size != size:
        raise WrongContent("wrong_size", f"{part.size} bytes came, the config says {size}")
    digest = part.sha256() if sha256 else None
    if sha256 and digest != sha256.lower():
        raise WrongContent("wrong_sha256", f"the sha256 is {digest}, the config says {sha256.lower()}")
    _check_format(part, final)
    part.rename(final)
    failpoint("renamed")
    return digest


def _check_format(part: Part, final: str) -> None:
    suffix = os.path.splitext(final)[1].lower()
    start = part.read(64, 0).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")) and suffix not in (".html", ".htm", ".xml", ".svg"):
        raise WrongContent("html", "the server sent a web page instead of the file", permanent=True)
    if suffix == ".safetensors":
        _check_safetensors(part)
    if suffix == ".gguf" and not part.read(4, 0) == b"GGUF":
        raise WrongContent("not_gguf", "the file does not begin like a gguf file")
    if part.size == 0:
        raise WrongContent("empty", "the file is empty")


def _check_safetensors(part: Part) -> None:
    """An eight-byte length, a JSON header, and exactly the data that the header promises."""
    length = int.from_bytes(part.read(8, 0), "little")
    if part.size < 10 or not 2 <= length <= min(_HEADER_MAX, part.size - 8):
        raise WrongContent("not_safetensors", "the file does not begin like a safetensors file")
    try:
        header = json.loads(part.read(length, 8))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise WrongContent("not_safetensors", "the header of the safetensors file is broken") from None
    if end != part.size - 8 - length:
        raise WrongContent("not_safetensors", "the safetensors file is cut off or has bytes too many")
