"""Runs as PID 1 of fresh namespaces: lays out a container's file system, then becomes the image's entrypoint.

One argument: a JSON file with `rootfs`, `scratch` (an empty folder), `volumes` (path inside -> path outside), `argv`,
`environ` and `workdir`. What is written goes to a layer in memory, as it would with `docker run --rm`.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

DEVICES = ("null", "zero", "full", "random", "urandom")
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def layer(rootfs: str, scratch: str) -> Path:
    mount("-t", "tmpfs", "tmpfs", scratch)
    upper, work, root = (Path(scratch) / name for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir()
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={rootfs},upperdir={upper},workdir={work}", str(root))
    return root


def devices(root: Path) -> None:
    dev = root / "dev"
    mount("-t", "tmpfs", "tmpfs", str(dev))
    for name in DEVICES:
        bind(Path("/dev") / name, dev / name)
    (dev / "fd").symlink_to("/proc/self/fd")
    (dev / "shm").mkdir()
    mount("-t", "tmpfs", "tmpfs", str(dev / "shm"))
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("-t", "sysfs", "-o", "ro", "sysfs", str(root / "sys"))


def bind(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount("--bind", str(source), str(target))


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0) + bytes(14))
        (flags,) = struct.unpack_from("h", asked, 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP) + bytes(14))


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    root = layer(given["rootfs"], given["scratch"])
    devices(root)
    for target, source in given["volumes"].items():
        bind(Path(source), root / target.lstrip("/"))
    loopback_up()
    os.chroot(root)
    os.chdir(given["workdir"])
    os.environ["PATH"] = given["environ"]["PATH"]
    os.execvpe(given["argv"][0], given["argv"], given["environ"])


if __name__ == "__main__":
    main()
