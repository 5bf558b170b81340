"""What this machine lets a fault test do, and the faults themselves: a shim of the C library, mounts of its own.

A test that needs root and namespaces, or a compiler, fails where CI=true and they are missing; elsewhere it is skipped.
"""

import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AHEAD, INIT_ERRNO, WATCH_ERRNO, READ_ERRNO, COUNT, PATH = 0, 8, 12, 16, 20, 64


def missing(what: str) -> None:
    """The test cannot run here."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, which CI must have")
    pytest.skip(what)


def need_namespaces() -> None:
    tried = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True, text=True)
    if tried.returncode != 0:
        missing(f"no mount namespace: {tried.stderr.strip()}")


class Shim:
    """The faults of one process tree. `environ` loads it; what is set here holds at once."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("gcc") is None:
            missing("no gcc")
        library, area = folder / "shim.so", folder / "shim.area"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "shim.c", "-ldl"], check=True)
        area.write_bytes(bytes(4096))
        with area.open("r+b") as file:
            self._area = mmap.mmap(file.fileno(), 4096)
        self.environ = {"LD_PRELOAD": str(library), "FAULT_SHIM": str(area)}

    def set_clock(self, ahead_s: float) -> None:
        struct.pack_into("q", self._area, AHEAD, int(ahead_s * 1e9))

    def refuse_notices(self, *, init: int = 0, watch: int = 0) -> None:
        """Error numbers of inotify_init1 and inotify_add_watch; 0 = they work."""
        struct.pack_into("ii", self._area, INIT_ERRNO, init, watch)

    def fail_reading(self, path: Path, number: int) -> None:
        self._area[PATH : PATH + 1024] = os.fsencode(path).ljust(1024, b"\0")
        struct.pack_into("i", self._area, READ_ERRNO, number)

    @property
    def count(self) -> int:
        """How often anything was made to fail."""
        return int(struct.unpack_from("i", self._area, COUNT)[0])


def mounting(*mounts: tuple[str, ...]) -> list[str]:
    """The beginning of a command line that runs the rest in a mount namespace with these mounts (words of mount(8))."""
    inside = [sys.executable, str(HERE / "inside.py"), *(json.dumps(words) for words in mounts), "--"]
    return ["unshare", "--mount", "--propagation", "private", *inside]
