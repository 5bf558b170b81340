"""V3: every signal that a daemon asks the kernel to send goes to a process that it, or the one before it, started."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.reliability.audit import Audit, Sent, prefix
from tests.reliability.ground import ground

TRACE = """\
10 clone3({flags=CLONE_VM|CLONE_FS|CLONE_THREAD|CLONE_SIGHAND, exit_signal=0} => {parent_tid=[11]}, 88) = 11
11 vfork( <unfinished ...>
10 pidfd_open(999, 0) = 7
11 <... vfork resumed>) = 20
11 pidfd_open(20, 0) = 8
20 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f) = 21
20 kill(1, SIGTERM) = 0
10 pidfd_send_signal(8, SIGINT, NULL, 0) = 0
11 kill(-20, SIGKILL) = 0
11 kill(21, SIGTERM) = 0
10 tgkill(10, 11, SIGTERM) = 0
10 kill(999, 0) = 0
"""


def test_the_reader_knows_own_from_foreign() -> None:
    audit = Audit().read(TRACE.splitlines(), 10)
    assert audit.started == {20, 21}
    assert audit.sent == [Sent("SIGINT", 20), Sent("SIGKILL", -20), Sent("SIGTERM", 21)]
    assert audit.foreign() == []


@pytest.mark.parametrize(
    ("call", "target"),
    [
        ("pidfd_send_signal(7, SIGTERM, NULL, 0) = 0", 999),
        ("pidfd_send_signal(9, SIGTERM, NULL, 0) = -1 EBADF (Bad file descriptor)", 0),
        ("kill(999, SIGTERM) = 0", 999),
        ("kill(-1, SIGTERM) = 0", -1),
        ("kill(0, SIGTERM) = 0", 0),
        ("tgkill(999, 999, SIGTERM) = 0", 999),
    ],
)
def test_the_reader_finds_a_signal_to_a_stranger(call: str, target: int) -> None:
    audit = Audit().read([*TRACE.splitlines(), f"11 {call}"], 10)
    assert audit.foreign() == [Sent("SIGTERM", target)]


@pytest.mark.reliability
@pytest.mark.timeout(300)
def test_no_signal_leaves_the_family(tmp_path: Path) -> None:
    """Starts, a crash, a restart, an edit, a kill of the daemon, a death meanwhile, adoption, the end."""
    require_strace()
    audit = Audit()
    with ground(tmp_path, "audit", 0) as place:
        daemon = place.daemon
        first = begin(daemon, tmp_path / "first")
        daemon.until_ready(0, 1)
        place.decoys.start_likenesses(daemon)
        pids = daemon.pids()
        os.kill(pids["comfyui/0"], signal.SIGKILL)
        daemon.until(lambda: moved(daemon, "comfyui/0", pids))
        daemon.post("/api/comfyui/instances/1/restart")
        daemon.until(lambda: moved(daemon, "comfyui/1", pids))
        daemon.until_ready(0, 1)
        pids = daemon.pids()
        daemon.edit(lambda data: data["instances"][0].update(extra_args="--verbose"))
        daemon.until(lambda: moved(daemon, "comfyui/0", pids))
        daemon.until_ready(0, 1)
        pids = daemon.pids()
        daemon.kill()
        os.kill(pids["comfyui/1"], signal.SIGKILL)
        second = begin(daemon, tmp_path / "second")
        daemon.until(lambda: moved(daemon, "comfyui/1", pids))
        daemon.until_ready(0, 1)
        assert daemon.pids()["comfyui/0"] == pids["comfyui/0"], "adopted"
        assert daemon.stop() == 0
        assert place.decoys.harmed() == []
    for trace, pid in (first, second):
        audit.read(trace.read_text().splitlines(), pid)
    assert audit.foreign() == []
    assert Sent("SIGINT", pids["comfyui/0"]) in audit.sent, "what the first one started, the second one ended"
    assert len(audit.sent) >= 4


def require_strace() -> None:
    if shutil.which("strace") is None:
        missing = "strace is missing: run scripts/dev/install_tools.sh strace"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)


def begin(daemon: Daemon, trace: Path) -> tuple[Path, int]:
    daemon.prefix = prefix(trace)
    daemon.start(60)
    assert daemon.process is not None
    return trace, daemon.process.pid


def moved(daemon: Daemon, key: str, before: dict[str, int]) -> bool:
    return daemon.pids().get(key, before[key]) != before[key]
