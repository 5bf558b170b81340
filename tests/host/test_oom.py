"""Where the count of memory kills is read from, by how cgroups are mounted."""

import os
from pathlib import Path

import pytest

from comfyd.host import cpu, oom
from comfyd.host.oom import Kills, kills

V1 = "36 32 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V1_INSIDE = "36 32 0:31 /docker/abc /sys/fs/cgroup/memory ro,relatime shared:9 - cgroup cgroup rw,memory"
V1_CPU = "35 32 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V2 = "42 32 0:40 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
EVENTS = "low 0\nhigh 3\nmax 12\noom 5\noom_kill {}\noom_group_kill 0\n"
PID = 77


def machine(root: Path, mounts: list[str], cgroup: str, files: dict[str, str]) -> Path:
    """A root folder with what the kernel would show there."""
    shown = {f"proc/{os.getpid()}/mountinfo": "\n".join(mounts), f"proc/{PID}/cgroup": cgroup, **files}
    for name, text in shown.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("mounts", "cgroup", "file", "text"),
    [
        ([V1_CPU, V1], "3:cpu:/\n4:memory:/box\n0::/\n", "sys/fs/cgroup/memory/box/memory.oom_control", CONTROL),
        ([V2, V1], "0::/\n4:memory:/\n", "sys/fs/cgroup/memory/memory.oom_control", CONTROL),
        ([V1_INSIDE], "4:memory:/docker/abc/x\n", "sys/fs/cgroup/memory/x/memory.oom_control", CONTROL),
        ([V1_INSIDE], "4:memory:/docker/abc\n", "sys/fs/cgroup/memory/memory.oom_control", CONTROL),
        ([V2], "0::/user.slice/a\n", "sys/fs/cgroup/unified/user.slice/a/memory.events", EVENTS),
        ([], "0::/\n", "proc/vmstat", "nr_free_pages 9\noom_kill {}\npgscan 1\n"),
        ([V2], "0::/\n", "proc/vmstat", "oom_kill {}\n"),
    ],
)
def test_the_counter_of_the_cgroup_or_else_of_the_machine(
    tmp_path: Path, mounts: list[str], cgroup: str, file: str, text: str
) -> None:
    root = machine(tmp_path, mounts, cgroup, {file: text.format(7), "proc/other": "oom_kill 99"})
    found = kills(PID, root)
    assert found == Kills(str(root / file), 7)
    (root / file).write_text(text.format(9))
    now = oom.read(found.path)
    assert now is not None
    assert now.since(found) == 2


def test_another_counter_tells_nothing() -> None:
    assert Kills("/a", 5).since(Kills("/b", 1)) == 0
    assert Kills("/a", 5).since(None) == 0


def test_nothing_to_read_is_no_error(tmp_path: Path) -> None:
    assert kills(PID, tmp_path) is None
    assert oom.read(str(tmp_path / "none")) is None
    (tmp_path / "odd").write_text("oom_kill many\n")
    assert oom.read(str(tmp_path / "odd")) is None


def test_this_machine_has_a_counter() -> None:
    assert kills(os.getpid()) is not None


def test_cpu_time_of_a_session_rises_with_work_and_is_its_own() -> None:
    leader = os.getsid(0)
    before = cpu.cpu_seconds(cpu.session_pids(leader))
    used = os.times().user
    while os.times().user - used < 0.1:
        sum(range(10_000))
    assert cpu.cpu_seconds(cpu.session_pids(leader)) - before >= 0.05
    assert cpu.cpu_seconds(cpu.session_pids(2**22)) == 0
