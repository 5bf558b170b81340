"""How a run ended and what to do: reason, hint and quoted line for every kind of end."""

import errno
from typing import Any

import pytest

from comfyd.core.backoff import crash_delay_s
from comfyd.core.exits import QUOTED, bad_arguments, exit_hint, exit_reason, exit_text
from comfyd.model.observed import ExitInfo
from tests.unit.test_plan import desire, gone, wish, with_processes

USAGE = ("usage: main.py [-h] [--cpu]", "main.py: error: unrecognized arguments: --foo", "")


def ended(**given: Any) -> ExitInfo:
    return ExitInfo(**({"at": 1.0, "wall": 1.0} | given))


@pytest.mark.parametrize(
    ("given", "reason", "hint"),
    [
        ({"code": 1}, "crashed", "read the end of its log"),
        ({"code": 1, "last_lines": ("ModuleNotFoundError: No module named 'x'",)}, "crashed", "comfyd env install"),
        ({"code": 1, "last_lines": ("torch.cuda.OutOfMemoryError: CUDA out of memory",)}, "crashed", "--lowvram"),
        ({"code": 1, "last_lines": ("[Errno 98] Address already in use",)}, "crashed", "comfyd doctor"),
        ({"code": 1, "last_lines": ("RuntimeError: Found no NVIDIA driver on your system",)}, "crashed", "--cpu"),
        ({"code": 2, "last_lines": USAGE}, "crashed", "correct extra_args"),
        ({"signal": "SIGKILL"}, "crashed", "dmesg"),
        ({"signal": "SIGKILL", "oom": True}, "oom", "memory"),
        ({"errno": "ENOENT", "cause": "x"}, "spawn_refused", "is missing"),
        ({"errno": "EACCES", "cause": "x"}, "spawn_refused", "executable"),
        ({"errno": "EMFILE", "cause": "x"}, "no_resources", "ulimit -n"),
        ({"errno": "EAGAIN", "cause": "x"}, "no_resources", "pids.max"),
        ({"errno": "E2BIG", "cause": "x"}, "spawn_refused", "extra_args"),
        ({"errno": "EXDEV", "cause": "x"}, "spawn_refused", "comfyd restart"),
    ],
)
def test_reason_and_hint(given: dict[str, Any], reason: str, hint: str) -> None:
    last = ended(**given)
    assert exit_reason(last) == reason
    assert hint in exit_hint(last)


def test_no_error_of_the_system_is_without_a_hint() -> None:
    assert all(exit_hint(ended(errno=name)) for name in errno.errorcode.values())


def test_the_last_line_of_the_log_is_quoted_and_cut() -> None:
    assert exit_text(ended(code=3, last_lines=("a", " b ", "  "))) == "exit code 3; last line: b"
    assert exit_text(ended(code=3)) == "exit code 3"
    assert len(exit_text(ended(code=3, last_lines=("x" * 500,)))) < QUOTED + 50


@pytest.mark.parametrize(("code", "lines"), [(1, USAGE), (2, ("Traceback", "exit")), (2, ())])
def test_what_is_no_refused_argument(code: int, lines: tuple[str, ...]) -> None:
    assert bad_arguments(ended(code=code, last_lines=lines)) is None


def test_the_message_of_the_parser_is_quoted() -> None:
    found = bad_arguments(ended(code=2, last_lines=USAGE, wall=9.0))
    assert found is not None
    assert (found.message, found.since) == (USAGE[1], 9.0)


def test_what_does_not_pass_by_itself_backs_off() -> None:
    missing = with_processes(gone(0, crashes=9, code=None, errno="ENOENT", cause="x")).plan(desire(wish(0)))
    assert missing.wake_at == 1000.0 + crash_delay_s(9, "comfyui/0")
    assert missing.holds["comfyui/0"].reason == "spawn_refused"


def test_what_an_earlier_version_kept_of_an_exit_is_understood() -> None:
    kept = {"at": 1.0, "wall": 2.0, "signal": "SIGKILL"}
    assert ExitInfo.model_validate({**kept, "oom": True}).reason == "oom"
    assert ExitInfo.model_validate({**kept, "oom": True, "reason": "unresponsive"}).reason == "unresponsive"
    assert ExitInfo.model_validate({**kept, "oom": False}).oom is False
