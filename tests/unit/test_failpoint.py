"""Failpoints: off by default, the three actions, the count, and a clear error for a bad variable."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from comfyd.failpoint import FailpointError, arm, failpoint


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def test_unarmed_does_nothing() -> None:
    arm("")
    failpoint("enqueue_before_commit")
    arm("other=raise")
    failpoint("enqueue_before_commit")


def test_raise_acts_once() -> None:
    arm("a=raise")
    with pytest.raises(FailpointError, match="a"):
        failpoint("a")
    failpoint("a")


def test_the_third_time() -> None:
    arm("a#3=raise, b=raise")
    failpoint("a")
    failpoint("a")
    with pytest.raises(FailpointError):
        failpoint("a")
    with pytest.raises(FailpointError):
        failpoint("b")


def test_sleep() -> None:
    arm("a=sleep:0.05")
    begun = time.monotonic()
    failpoint("a")
    assert time.monotonic() - begun >= 0.05


def test_kill_from_the_variable() -> None:
    code = "from comfyd.failpoint import failpoint; print('before', flush=True); failpoint('x'); print('after')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"COMFYD_FAILPOINT": "x=kill"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "before\n")


@pytest.mark.parametrize("text", ["a", "a=", "a=explode", "a=raise,b=x", "a#x=raise"])
def test_a_bad_variable_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        arm(text)
