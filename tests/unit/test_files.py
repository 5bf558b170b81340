"""Files: bounded reads, atomic replacement, links, locks; with real files and processes."""

import os
import socket
import stat
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from comfyd.errors import LockHeldError
from comfyd.host.files import (
    atomic_write,
    exclusive_lock,
    flip_link,
    mount_points,
    read_bounded,
    sweep_temporaries,
    sync_replaced,
)


def test_a_file_within_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert read_bounded(file, 5).data == b"12345"
    (tmp_path / "link").symlink_to(file)
    assert read_bounded(tmp_path / "link").data == b"12345"
    file.write_bytes(b"")
    assert read_bounded(file).data == b""


def test_a_file_over_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"123456")
    found = read_bounded(file, 5)
    assert (found.data, found.problem) == (None, "too_large")
    assert "at most 5" in found.detail


def test_a_file_of_the_kernel_that_tells_no_size() -> None:
    found = read_bounded(Path("/proc/self/maps"), 10)
    assert (found.data, found.problem) == (None, "too_large")


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "socket", "loop", "below_a_file", "device"])
def test_what_is_no_file_never_raises_or_blocks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "below_a_file":
        path.touch()
        path = path / "y"
    elif kind == "device":
        path = Path("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            listener.bind(str(path))
        found = read_bounded(path)
    expected = {"missing": {"missing"}, "folder": {"not_a_file"}, "fifo": {"not_a_file"}, "device": {"not_a_file"}}
    assert found.data is None
    assert found.problem in expected.get(kind, {"unreadable"})
    assert str(path) in found.detail


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "a", tmp_path, tmp_path / "none"):
        read_bounded(path, 0)
        read_bounded(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_readers_see_the_old_or_the_new_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    contents = {bytes([n]) * 100_000 for n in range(8)}
    atomic_write(file, b"\0" * 100_000)
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for content in sorted(contents) * 5:
        atomic_write(file, content)
    done.set()
    reader.join()
    assert seen <= contents
    assert os.listdir(tmp_path) == ["a"]


def test_what_was_replaced_unsynced_can_be_synced_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself and its folder, in this order."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    file = tmp_path / "a"
    atomic_write(file, b"1", sync=False)
    assert (file.read_bytes(), synced) == (b"1", [])
    sync_replaced(file)
    assert synced == [str(file), str(tmp_path)]


def test_the_mode_is_as_asked_from_the_first_byte(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "secret", b"x", mode=0o600)
        atomic_write(tmp_path / "plain", b"x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("secret", "plain")]
    assert modes == [0o600, 0o644]


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    (tmp_path / "link").symlink_to(target)
    atomic_write(tmp_path / "link", b"new")
    assert target.read_bytes() == b"kept"
    assert (tmp_path / "link").read_bytes() == b"new"
    assert not (tmp_path / "link").is_symlink()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=r".+"):
        atomic_write(tmp_path / "a", b"x")
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "none/b", b"x")
    assert os.listdir(tmp_path) == ["a"]


def test_only_what_a_killed_write_left_is_swept(tmp_path: Path) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    for folder in (state / "below", elsewhere):
        folder.mkdir(parents=True)
    killed = "import os; from pathlib import Path; from comfyd.host import files\nos.replace = lambda *_: os._exit(9)\n"
    for target in (state / "a.json", state / "below/b"):
        code = killed + f"files.atomic_write(Path({str(target)!r}), b'x')"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    kept = [state / ".a.tmp", state / "x.0123abcd.tmp", elsewhere / ".a.0123abcd.tmp", state / ".a.0123abcd.tmp.d"]
    for file in kept:
        file.touch()
    (state / "link").symlink_to(elsewhere)
    (state / ".l.0123abcd.tmp").symlink_to(kept[0])
    assert sweep_temporaries(state) == 2
    left = sorted(p.name for p in state.rglob("*"))
    assert left == [".a.0123abcd.tmp.d", ".a.tmp", ".l.0123abcd.tmp", "below", "link", "x.0123abcd.tmp"]
    assert all(file.exists() for file in kept)


def test_flip_makes_and_moves_a_link_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        flip_link(tmp_path / "current", name)
        assert os.readlink(tmp_path / "current") == name
    flip_link(tmp_path / "current", "gone")
    assert os.readlink(tmp_path / "current") == "gone"
    assert sorted(os.listdir(tmp_path)) == ["current", "one", "two"]


@pytest.mark.parametrize("real", ["folder", "file"])
def test_flip_never_replaces_what_is_real(tmp_path: Path, real: str) -> None:
    place = tmp_path / "current"
    if real == "folder":
        place.mkdir()
        (place / "kept").touch()
    else:
        place.touch()
    with pytest.raises(FileExistsError):
        flip_link(place, "other")
    assert os.listdir(tmp_path) == ["current"]
    assert not place.is_symlink()


HOLD = """
import sys
from pathlib import Path
from comfyd.host.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "the state folder"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "new/daemon.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockHeldError, match=f"the state folder is held by pid {holder.pid}"), lock(path):
            pytest.fail("two hold the lock")
        holder.kill()
        holder.wait(10)
    with lock(path):
        assert path.read_text() == f"pid {os.getpid()}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with lock(path):
        pass


def lock(path: Path) -> AbstractContextManager[None]:
    return exclusive_lock(path, "the state folder")


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r".+"), lock(tmp_path / "lock"):
        pytest.fail("a link was followed")
    assert (tmp_path / "target").read_text() == "kept"


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path), subprocess.Popen(["sleep", "30"], close_fds=False) as child:
        try:
            inherited = []
            for fd in os.listdir(f"/proc/{child.pid}/fd"):
                with suppress(FileNotFoundError):  # what it has opened and closed itself; what it inherits stays
                    inherited.append(os.readlink(f"/proc/{child.pid}/fd/{fd}"))
        finally:
            child.kill()
    assert len(inherited) >= 3
    assert str(path) not in inherited


def test_mount_points_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        b"41 22 254:0 /home/me/a\\040b.json /instances.json rw - ext4 /dev/vda rw\n"
        b"42 22 0:5 / /mnt/with\\040space\\134n rw shared:3 - tmpfs tmpfs rw\n"
        b"torn line\n"
    )
    assert mount_points(table) == {"/", "/instances.json", "/mnt/with space\\n"}
    assert mount_points(tmp_path / "absent") == frozenset()
    assert "/" in mount_points()
