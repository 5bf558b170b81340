"""No inotify: the files are compared from time to time, the log says so once, and status shows it."""

import errno
import socket
import time
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.faults.surroundings import Shim
from tests.faults.world import SLACK_S, config, moved, passes, records

POLL_S = 2.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def rename_first(root: Path, before: str, after: str) -> None:
    path = root / "instances.json"
    path.write_text(path.read_text().replace(before, after))


@pytest.mark.parametrize("refused", [{"watch": errno.ENOSPC}, {"init": errno.EMFILE}], ids=["watches", "instances"])
def test_a_limit_of_inotify_is_survived_by_polling(daemon: Daemon, shim: Shim, refused: dict[str, int]) -> None:
    shim.refuse_notices(**refused)
    daemon.environ["COMFYD_POLL_S"] = str(POLL_S)
    daemon.start().until_ready(0, 1)
    before = moved(daemon)
    for turn, known in enumerate(("comfyui-main", "polled-0", "polled-1")):
        rename_first(daemon.root, known, f"polled-{turn}")
        daemon.until(lambda turn=turn: daemon.instance(0)["name"] == f"polled-{turn}", POLL_S + SLACK_S)
    assert config(daemon)["polling"] is True
    assert "files are compared" in daemon.get("/api/comfyui/status")["output"]
    assert len(records(daemon, "file watch lost, polling instead")) == 1
    assert shim.count > 0
    assert moved(daemon) == before


def test_polling_by_choice_is_shown_and_no_warning(daemon: Daemon) -> None:
    daemon.environ |= {"COMFYD_POLL_S": str(POLL_S), "COMFYD_FORCE_POLLING": "true"}
    daemon.start()
    daemon.until(lambda: config(daemon)["polling"] is True)
    rename_first(daemon.root, "comfyui-main", "polled")
    daemon.until(lambda: daemon.instance(0)["name"] == "polled", POLL_S + SLACK_S)
    assert records(daemon, "file watch lost, polling instead") == []


def test_a_look_that_finds_nothing_new_is_no_pass_unless_something_is_held(daemon: Daemon) -> None:
    """What holds something back (here a port) may tell nobody that it is gone."""
    daemon.environ |= {"COMFYD_POLL_S": "0.1", "COMFYD_FORCE_POLLING": "true"}
    daemon.start().until_ready(0, 1)
    before, since = passes(daemon), time.monotonic()
    daemon.until(lambda: passes(daemon) > before + 1, what="a pass without cause")
    assert time.monotonic() - since >= 0.5
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        port = foreign.getsockname()[1]
        daemon.edit(lambda d: d["instances"].append({"id": 7, "port": port, "name": "late"}))
        daemon.until(lambda: daemon.state(7) == "blocked")
    daemon.until_ready(7, timeout_s=10 + SLACK_S)
