"""Following a log through rotations, truncations and replacements: every byte once, in order, or a gap that is told."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyd.host import follow
from comfyd.host.follow import Follower, Found
from comfyd.host.rotate import rotate, rotated


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def drain(reader: Follower) -> list[Found]:
    found = []
    while (one := reader.read()).data or one.gap:
        found.append(one)
    return found


def text(reader: Follower) -> bytes:
    found = drain(reader)
    assert not any(one.gap for one in found)
    return b"".join(one.data for one in found)


def test_the_end_and_what_comes_later(log: Path) -> None:
    reader = Follower(log)
    assert reader.tail(10) == b""
    assert text(reader) == b""
    append(log, b"one\ntwo\n")
    assert text(reader) == b"one\ntwo\n"
    again = Follower(log)
    assert again.tail(1) == b"two\n"
    append(log, b"three\n")
    assert text(again) == text(reader) == b"three\n"


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_what_was_not_read_before_a_rotation_is_read_after_it(log: Path, size: int) -> None:
    append(log, b"0\n")
    reader = Follower(log)
    assert reader.tail(1) == b"0\n"
    append(log, b"1\n")
    rotate(log)
    append(log, b"x" * size + b"2\n")  # it may be longer than what was read before, or shorter
    assert text(reader) == b"1\n" + b"x" * size + b"2\n"


def test_three_rotations_behind_nothing_is_missing_and_five_behind_it_is_told(log: Path) -> None:
    append(log, b"0\n")
    near, far = Follower(log), Follower(log)
    assert near.tail(0) == far.tail(0) == b""
    for turn in range(1, 4):
        append(log, b"%d\n" % turn)
        rotate(log)
    assert text(near) == b"1\n2\n3\n"
    for turn in range(4, 7):
        append(log, b"%d\n" % turn)
        rotate(log)
    append(log, b"now\n")
    assert text(near) == b"4\n5\n6\nnow\n"
    assert drain(far) == [Found(b"now\n", gap=True)]
    append(log, b"later\n")
    assert text(far) == b"later\n"


def test_truncated_removed_or_replaced_by_somebody_else_it_is_read_from_its_start(log: Path) -> None:
    append(log, b"0123456789\n")
    reader = Follower(log)
    reader.tail(0)
    log.write_bytes(b"cut\n")
    assert text(reader) == b"cut\n"
    log.rename(log.with_name("aside"))
    assert text(reader) == b""
    append(log, b"another, and longer than the first\n")
    assert text(reader) == b"another, and longer than the first\n"
    log.unlink()
    log.symlink_to("aside")
    assert text(reader) == b""


def test_a_log_that_grew_far_over_its_limit_becomes_several_files_of_whole_lines(log: Path) -> None:
    lines = [b"%06d\n" % n for n in range(1500)]
    append(log, b"".join(lines[:500]))
    reader = Follower(log)
    reader.tail(0)
    append(log, b"".join(lines[500:]))
    assert rotate(log, keep=5, limit=2000) == 10_500
    files = [rotated(log, n).read_bytes() for n in (4, 3, 2, 1)]
    assert log.read_bytes() == b""
    assert all(0 < len(one) <= 2100 and one.endswith(b"\n") for one in files)
    assert b"".join(lines).endswith(b"".join(files))
    assert drain(reader)[0].gap
    append(log, b"next\n")
    assert rotate(log, keep=5, limit=2000) == 5
    assert text(reader) == b"next\n"


def test_two_thirds_of_a_flood_are_split_without_loss_for_a_reader(log: Path) -> None:
    lines = [b"%06d\n" % n for n in range(500)]
    append(log, b"".join(lines[:400]))
    reader = Follower(log)
    reader.tail(0)
    append(log, b"".join(lines[400:]))
    rotate(log, keep=5, limit=1000)
    assert text(reader) == b"".join(lines[400:])


def test_one_line_without_an_end_is_split_where_it_must(log: Path) -> None:
    append(log, b"y" * 300_000)
    rotate(log, keep=5, limit=100_000)
    assert [rotated(log, n).stat().st_size for n in (3, 2, 1)] == [100_000] * 3


@pytest.mark.parametrize("seed", range(5))
def test_random_appends_rotations_and_reads_give_every_byte_once(log: Path, seed: int) -> None:
    print(f"seed {seed}")
    dice, written, seen = random.Random(seed), bytearray(), bytearray()
    reader = Follower(log)
    reader.tail(0)
    behind = 0
    for turn in range(400):
        if dice.random() < 0.5:
            data = b"%d " % turn * dice.randrange(1, 400)
            append(log, data)
            written += data
        elif dice.random() < 0.5 and log.exists() and behind < 3:
            rotate(log)
            behind += 1
        else:
            for _ in range(dice.randrange(1, 6)):
                found = reader.read()
                assert not found.gap
                seen += found.data
            seen += text(reader)
            behind = 0
    seen += text(reader)
    assert bytes(seen) == bytes(written)


def test_a_full_disk_drops_the_oldest_files_first(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for turn in range(4):
        append(log, b"%d\n" % turn)
        rotate(log)
    append(log, b"new\n")
    failures = iter([True, True, False, False])
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if next(failures, False):
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(follow.os, "write", write)
    rotate(log)
    monkeypatch.undo()
    assert rotated(log, 1).read_bytes() == b"new\n"
    assert [rotated(log, n).exists() for n in (2, 3, 4)] == [True, True, False]


def test_a_disk_that_stays_full_leaves_the_log_as_it_is(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(log, b"new\n")
    full: Callable[[int, bytes], int] = lambda fd, data: (_ for _ in ()).throw(OSError(28, "full"))  # noqa: E731
    monkeypatch.setattr(follow.os, "write", full)
    with pytest.raises(OSError, match="full"):
        rotate(log)
    monkeypatch.undo()
    assert log.read_bytes() == b"new\n"
    assert [p.name for p in log.parent.iterdir()] == ["a.log"]
