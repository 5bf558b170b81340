"""What doctor makes of facts: levels, messages and hints."""

from typing import Any

import pytest

from comfyd.core.findings import (
    GIB,
    disk_finding,
    environment_findings,
    gpu_findings,
    instance_findings,
    memory_finding,
    queue_finding,
    size,
    sqlite_finding,
)
from comfyd.host.download import RESERVE_BYTES
from comfyd.model.finding import Finding


def condition(type_: str, reason: str, hint: str = "do this") -> dict[str, Any]:
    return {"type": type_, "reason": reason, "message": "why", "hint": hint}


def one(state: str, *conditions: dict[str, Any], desired: str = "up") -> dict[str, Any]:
    return {
        "key": "comfyui/0", "name": "main", "state": state, "ready": state == "ready", "desired": desired,
        "port": 3001, "pid": 7 if state == "ready" else None, "conditions": list(conditions),
    }  # fmt: skip


def levels(findings: Any) -> list[str]:
    found: list[Finding] = list(findings)
    assert all(f.hint for f in found if f.level != "ok"), "whatever is not fine says what to do"
    return [f.level for f in found]


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 51, 3), "ok"), ((3, 51, 4), "ok"), ((3, 52, 0), "ok"), ((4, 0, 0), "ok"), ((3, 50, 7), "ok"),
        ((3, 50, 8), "ok"), ((3, 44, 6), "ok"), ((3, 51, 2), "warning"), ((3, 50, 6), "warning"),
        ((3, 44, 5), "warning"), ((3, 45, 9), "warning"), ((3, 40, 1), "warning"), ((3, 43, 9), "warning"),
    ],
)  # fmt: skip
def test_sqlite(version: tuple[int, int, int], level: str) -> None:
    found = sqlite_finding(version)
    assert levels([found]) == [level]
    assert ".".join(map(str, version)) in found.message


@pytest.mark.parametrize(
    ("free", "total", "files", "level"),
    [
        (100 * GIB, 200 * GIB, 10, "ok"), (11 * GIB, 2000 * GIB, 10, "ok"), (9 * GIB, 20 * GIB, -1, "ok"),
        (9 * GIB, 100 * GIB, 10, "warning"), (1, 100 * GIB, 10, "error"), (100 * GIB, 200 * GIB, 0, "error"),
        (RESERVE_BYTES - 1, GIB, 10, "error"), (RESERVE_BYTES, GIB, 10, "ok"),
    ],
)  # fmt: skip
def test_disk(free: int, total: int, files: int, level: str) -> None:
    assert levels([disk_finding("workspace", "/w", free, total, files, RESERVE_BYTES)]) == [level]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * GIB, "5.0 GiB"), (5000 * GIB, "5000.0 GiB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (one("ready"), ["ok"]),
        (one("ready", condition("argument_warning", "unknown_flag")), ["ok", "warning"]),
        (one("ready", condition("restart_required", "new_generation")), ["ok", "warning"]),
        (one("stopped", condition("stopped", "disabled"), desired="down"), ["ok"]),
        (one("starting", condition("not_ready", "probe")), ["warning"]),
        (one("starting", condition("waiting_turn", "startup_delay")), ["warning"]),
        (one("unready", condition("not_ready", "probe")), ["error"]),
        (one("waiting_env", condition("waiting_env", "installing")), ["warning"]),
        (one("waiting_env", condition("waiting_env", "install_failed")), ["error"]),
        (one("blocked", condition("blocked", "port_in_use")), ["error"]),
        (one("backoff", condition("bad_arguments", "exit_2"), condition("backoff", "crashed")), ["error", "error"]),
        (one("failed", condition("failed", "ended")), ["error"]),
        (one("stopped", condition("stopped", "ended")), ["error"]),
        (one("held", condition("held", "environment_unknown", hint="")), ["error"]),
    ],
)
def test_instances(seen: dict[str, Any], expected: list[str]) -> None:
    assert levels(instance_findings({"instances": [seen]}, {})) == expected


def test_a_start_that_takes_long_says_so() -> None:
    seen = {"instances": [one("starting", condition("not_ready", "probe"))]}
    (soon,), (late,) = instance_findings(seen, {"comfyui/0": 10}), instance_findings(seen, {"comfyui/0": 900})
    assert "more than 5 minutes" in late.message
    assert "downloads at the start" in late.hint
    assert "minutes" not in soon.message


@pytest.mark.parametrize(
    ("installed", "wanted", "conditions", "expected"),
    [
        (True, True, [], ["ok"]),
        (False, False, [], ["ok"]),
        (False, True, [], ["warning"]),
        (False, True, [condition("install_failed", "script_failed")], ["error"]),
        (True, True, [condition("install_failed", "script_failed")], ["warning", "ok"]),
        (True, True, [condition("adopted", "existing_directory")], ["ok", "ok"]),
        (True, True, [condition("models_not_shared", "adopted")], ["warning", "ok"]),
        (False, True, [condition("conflict", "directory_in_the_way")], ["error"]),
        (False, False, [condition("held", "environment_invalid")], ["warning"]),
    ],
)
def test_environments(installed: bool, wanted: bool, conditions: list[Any], expected: list[str]) -> None:
    seen = {"name": "comm", "installed": installed, "state": "x", "generation": 1, "conditions": conditions}
    assert levels(environment_findings(seen, wanted=wanted)) == expected


GPU = {"index": 0, "name": "L4", "memory_total": 24 * GIB, "memory_used": GIB, "utilisation": 5, "temperature": 40}


@pytest.mark.parametrize(
    ("gpus", "problem", "wanted", "expected"),
    [
        ([GPU], None, True, ["ok"]),
        ([GPU | {"memory_used": 24 * GIB - 1}], None, True, ["warning"]),
        ([GPU], "GPU 1: lost", True, ["error", "ok"]),
        ([], "NVML: driver mismatch", True, ["error"]),
        ([], None, True, ["warning"]),
        ([], None, False, ["ok"]),
    ],
)
def test_gpus(gpus: list[Any], problem: str | None, wanted: bool, expected: list[str]) -> None:
    assert levels(gpu_findings(gpus, problem, None, wanted=wanted)) == expected


@pytest.mark.parametrize(
    ("waiting", "ready", "busy", "level"),
    [(0, 0, [], "ok"), (5, 0, [], "warning"), (5, 1, [3], "warning"), (5, 1, [90], "ok"), (0, 1, [0], "ok")],
)
def test_queue(waiting: int, ready: int, busy: list[int], level: str) -> None:
    assert levels([queue_finding({"pending": waiting, "processing": 1}, ready, busy)]) == [level]


@pytest.mark.parametrize(
    ("available", "ended", "level"),
    [(None, [], "ok"), (8 * GIB, [], "ok"), (GIB, [], "warning"), (8 * GIB, ["a"], "error")],
)
def test_memory(available: int | None, ended: list[str], level: str) -> None:
    assert levels([memory_finding(available, ended)]) == [level]
