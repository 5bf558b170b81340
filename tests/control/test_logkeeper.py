"""Copy and truncate under a writer that never stops: the child keeps its descriptor, almost nothing is lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comfyd.control.logkeeper import LogKeeper
from comfyd.host.rotate import rotate, rotated

WRITER = """
import os, sys, time
begun = time.monotonic()
for n in range(int(sys.argv[1])):
    os.write(1, b'%099d\\n' % n)
    if n % 200 == 0:  # 10 MB a second
        time.sleep(max(0.0, begun + n / 100_000 - time.monotonic()))
"""


def test_a_log_is_moved_and_its_writer_goes_on_without_a_hole(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"before\n")
    assert rotate(log) == 7
    os.write(fd, b"after\n")
    os.close(fd)
    assert log.read_bytes() == b"after\n"
    assert rotated(log, 1).read_bytes() == b"before\n"


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for number in range(9):
        log.write_text(str(number))
        rotate(log, keep=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2", "a.log.3", "a.log.4"]
    assert [rotated(log, n).read_text() for n in (1, 2, 3, 4)] == ["8", "7", "6", "5"]


def test_a_flood_stays_below_the_cap_and_loses_next_to_nothing(tmp_path: Path) -> None:
    """A handful of lines per rotation on a quiet machine; between two system calls a busy one may run the writer."""
    log, lines, limit = tmp_path / "flood.log", 300_000, 5_000_000
    keeper = LogKeeper(lambda: [str(log)], limit)
    seen: set[int] = set()
    files: set[tuple[int, int]] = set()
    with log.open("ab") as out:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(lines)], stdout=out)
    try:
        while True:
            ended = writer.poll() is not None
            keeper.keep_once(0.01)
            for one in filter(Path.exists, (rotated(log, number) for number in range(1, 5))):
                stamp = (one.stat().st_ino, one.stat().st_mtime_ns)
                if stamp not in files:  # what got long meanwhile becomes several at once
                    files.add(stamp)
                    seen |= {int(x) for x in one.read_bytes().split()}
            if ended:
                break
            time.sleep(0.005)
    finally:
        writer.kill()
        writer.wait()
    seen |= {int(x) for x in log.read_bytes().split()}
    assert len(files) >= 2
    assert len(list(tmp_path.iterdir())) <= 5
    lost = lines - len(seen)
    assert lost * 100 <= lines, f"{lost} lines lost in {len(files)} files"


def test_a_link_in_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x" * 100)
    (tmp_path / "a.log").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        rotate(tmp_path / "a.log")
    keeper = LogKeeper(lambda: [str(tmp_path / "a.log")], 10)
    assert keeper.keep_once(1.0) is False
    assert (tmp_path / "precious").read_text() == "x" * 100
