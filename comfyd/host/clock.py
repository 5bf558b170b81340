"""The only reader of clocks, and the two identities a clock belongs to."""

import os
import time
from pathlib import Path


def mono() -> float:
    """CLOCK_BOOTTIME seconds: runs on through suspend, never jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since the epoch."""
    return time.time()


def boot_id() -> str:
    """The kernel's boot id; a mono reading means nothing under another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def container_id() -> str:
    """Identity of this container: boot id, pid namespace and the start time of its pid 1."""
    stat = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    return f"{boot_id()}:{os.stat('/proc/self/ns/pid').st_ino}:{stat[19]}"
