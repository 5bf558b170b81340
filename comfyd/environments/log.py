"""The install log: lines of ours between the output of scripts, and its end for status. Blocking, short."""

import os
import re
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_CREDENTIALS = re.compile(r"://[^/@\s]+@")
_MAX_LINE = 400


def append_text(log: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(log, flags, 0o644)
    try:
        os.write(fd, text.encode("utf-8", "replace"))
    finally:
        os.close(fd)


def log_size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def tail_lines(log: Path, count: int, since: int = 0) -> tuple[str, ...]:
    """The last non-empty lines written after byte `since`, without control characters and URL credentials."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(since, end - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ()
    lines = (_CONTROL.sub("", line.rpartition("\r")[2] or line) for line in text.replace("\r\n", "\n").split("\n"))
    kept = [_CREDENTIALS.sub("://***@", line.strip())[:_MAX_LINE] for line in lines if line.strip()]
    return tuple(line for line in kept if line and not line.startswith("# comfyd: "))[-count:]
