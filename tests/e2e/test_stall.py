"""The daemon's own loop is blocked: its log says where, and health how long it was."""

import pytest

from tests.daemon import Daemon


@pytest.mark.slow
def test_a_blocked_loop_is_logged_with_its_stack_and_remembered(daemon: Daemon) -> None:
    daemon.environ["COMFYD_FAILPOINT"] = "parsed=sleep:7.5"
    daemon.start(timeout_s=40)
    daemon.until(lambda: daemon.get("/health")["longest_stall_s"] >= 5, 40, "the stall is remembered")
    told = [line for line in daemon.output.splitlines() if "event loop blocked" in line and "failpoint.py:" in line]
    assert len(told) == 1
    assert "_read_desired (loop.py:" in told[0]
    assert "event loop runs again" in daemon.output
    daemon.until_ready(0)
    stall = daemon.get("/livez")["longest_stall_s"]
    assert f"comfyd_longest_stall_seconds {stall:.1f}"[:-2] in daemon.call("GET", "/metrics").body.decode()
