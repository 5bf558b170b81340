"""`status`, `health`, `reload`, `version`: text, JSON, exit codes."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cli.serving import World, comfyd, environment, instance, serving

NOWHERE = "http://127.0.0.1:1"


def world(*instances: dict[str, object]) -> World:
    return World(instances=list(instances) or [instance(0, "comfyui-main", 3001)])


def test_a_table_when_all_is_well() -> None:
    with serving(world(instance(0, "主要 one", 3001), instance(None, "jupyter", 8888))) as seen:
        ran = comfyd("status", "--url", seen.url)
    lines = ran.out.splitlines()
    assert (ran.code, ran.err) == (0, "")
    assert lines[0].split() == ["NAME", "ID", "ENV", "PORT", "STATE", "PID", "SINCE", "RESTARTS", "REASON"]
    assert lines[1].split() == ["主要", "one", "0", "comm", "3001", "ready", "7001", "3m12s", "0"]
    assert lines[2].split()[:3] == ["jupyter", "comm", "8888"]


@pytest.mark.parametrize(
    ("state", "code"), [("ready", 0), ("stopped", 0), ("starting", 3), ("backoff", 3), ("waiting_env", 3)]
)
def test_exit_code_3_as_long_as_something_wanted_is_not_ready(state: str, code: int) -> None:
    with serving(world(instance(0, "main", 3001, state), instance(1, "other", 3002))) as seen:
        ran = comfyd("status", "--json", "--url", seen.url)
    assert ran.code == code
    assert ran.json["degraded"] is (code == 3)
    assert ran.json["running"] is True
    assert [i["state"] for i in ran.json["instances"]] == [state, "ready"]


def test_a_refused_file_is_degraded_and_its_errors_are_shown() -> None:
    given = world()
    issue = {"severity": "error", "file": "/instances.json", "line": 3, "column": 9, "message": "duplicate id 0"}
    whole = {"severity": "error", "file": "/f", "line": 0, "column": 0, "message": "is not there", "hint": "create it"}
    given.config = {"state": "stale", "path": "/instances.json", "issues": [issue, whole]}
    with serving(given) as seen:
        ran = comfyd("status", "--url", seen.url)
    assert ran.code == 3
    assert "/instances.json:3:9: error: duplicate id 0\n" in ran.err
    assert "/f: error: is not there (create it)\n" in ran.err


def test_the_reason_is_shown_and_cannot_steer_the_terminal() -> None:
    cause = {"type": "blocked", "reason": "port_in_use", "message": "held by \x1b]0;evil\x07 pid 7\nx"}
    with serving(world(instance(0, "main", 3001, "blocked", conditions=[cause]))) as seen:
        ran = comfyd("status", "--url", seen.url)
    assert "main: blocked/port_in_use: held by" in ran.out
    assert "\x1b" not in ran.out
    assert len(ran.out.splitlines()) == 3


BACKOFF = {
    "type": "backoff", "reason": "crashed", "message": "ended 3 times in a row (exit code 3; last line: boom)",
    "hint": "read the end of its log", "since": "2026-01-31T11:59:15.000Z",
}  # fmt: skip
DOUBT = {"type": "argument_warning", "reason": "unknown_flag", "message": "--lowvrm: ...", "hint": "did you mean it?"}
EXIT = {
    "code": 3, "text": "exit code 3", "asked": False, "at": "2026-01-31T11:59:15.000Z", "last_lines": ["first", "boom"]
}  # fmt: skip


def test_every_condition_of_what_is_wanted_is_told_with_its_age_and_hint() -> None:
    broken = instance(0, "main", 3001, "backoff", conditions=[BACKOFF])
    doubtful = instance(1, "fine", 3002, conditions=[DOUBT])
    off = instance(2, "off", 3003, "stopped", conditions=[{"type": "stopped", "reason": "disabled", "message": "m"}])
    with serving(world(broken, doubtful, off)) as seen:
        ran = comfyd("status", "--url", seen.url)
    table, told = ran.out.splitlines()[:4], ran.out.splitlines()[4:]
    assert table[1].endswith("backoff/crashed")
    assert told == [
        f"main: backoff/crashed for 45s: {BACKOFF['message']}",
        "  -> read the end of its log",
        "fine: argument_warning/unknown_flag: --lowvrm: ...",
        "  -> did you mean it?",
    ]


def test_what_is_wrong_with_environments_is_told_with_its_hint() -> None:
    given = world()
    failed = {"type": "model_failed", "reason": "http_404", "message": "x: 404", "hint": "correct the entry"}
    calm = {"type": "adopted", "reason": "existing_directory", "message": "was there"}
    given.environments = [
        {"name": "comm", "state": "installed", "conditions": [failed, calm]},
        {"name": "slow", "state": "installing", "install": {"step": "run_script"}},
        {"name": "rest", "state": "absent", "conditions": []},
    ]
    with serving(given) as seen:
        told = comfyd("status", "--url", seen.url).out.splitlines()[2:]
    assert told == [
        "environment comm: installed",
        "environment comm: model_failed/http_404: x: 404",
        "  -> correct the entry",
        "environment slow: installing, step run_script",
    ]


@pytest.mark.parametrize("word", ["0", "main", "3001"])
def test_one_instance_is_shown_with_the_end_of_its_log(word: str) -> None:
    broken = instance(0, "main", 3001, "backoff", conditions=[BACKOFF], last_exit=EXIT, log="/w/main.log")
    with serving(world(broken, instance(1, "other", 3002))) as seen:
        ran = comfyd("status", word, "--url", seen.url)
        data = comfyd("status", word, "--json", "--url", seen.url)
    assert (ran.code, data.code) == (3, 3)
    assert (data.json["name"], data.json["last_exit"]["last_lines"]) == ("main", ["first", "boom"])
    assert "other" not in ran.out
    assert "main: backoff/crashed for 45s" in ran.out
    assert ran.out.endswith("last run ended by itself 45s ago: exit code 3\n  | first\n  | boom\n")
    assert "/w/main.log" in ran.out


def test_one_instance_that_is_ready_is_0_and_an_unknown_one_1() -> None:
    with serving(world(instance(0, "main", 3001), instance(1, "other", 3002, "failed"))) as seen:
        assert comfyd("status", "main", "--url", seen.url).code == 0
        unknown = comfyd("status", "mian", "--url", seen.url)
    assert (unknown.code, "did you mean main?" in unknown.err) == (1, True)


def test_not_running_is_3_and_says_what_was_tried() -> None:
    plain, machine = comfyd("status", "--url", NOWHERE), comfyd("--json", "status", "--url", NOWHERE)
    assert plain.code == machine.code == 3
    assert f"tried {NOWHERE} (connection refused)" in plain.err
    assert "`comfyd run`" in plain.err
    assert plain.out == ""
    assert machine.json["running"] is False


def test_watch_prints_again_after_a_change_and_ends_by_ctrl_c_with_130() -> None:
    with serving(world()) as seen:
        command = [sys.executable, "-m", "comfyd", "status", "--watch", "--json", "--url", seen.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            seen.instances[0].update(state="unready", ready=False)
            second = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            code = process.wait(10)
    assert [first["instances"][0]["state"], second["instances"][0]["state"]] == ["ready", "unready"]
    assert code == 130


def test_a_closed_pipe_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    with serving(world()) as seen, os.fdopen(write, "wb") as closed:
        command = [sys.executable, "-m", "comfyd", "status", "--url", seen.url]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_health_and_readiness() -> None:
    given = world()
    given.answers = {
        "GET /health": (200, {"status": "healthy", "timestamp": "x"}),
        "GET /ready": (200, {"status": "ready"}),
    }
    with serving(given) as seen:
        assert comfyd("health", "--url", seen.url).out == "healthy\n"
        assert comfyd("health", "--ready", "--url", seen.url).code == 0
        body = {"error": {"code": "not_ready", "message": "draining", "details": {}}, "detail": "draining"}
        seen.answers["GET /ready"] = (503, body)
        late = comfyd("health", "--ready", "--json", "--url", seen.url)
    assert (late.code, late.json["ready"], late.json["message"]) == (3, False, "draining")
    assert comfyd("health", "--url", NOWHERE).code == 69


@pytest.mark.parametrize(("status", "code"), [("success", 0), ("refused", 78), ("pending", 4)])
def test_reload(status: str, code: int) -> None:
    given = world()
    given.answers = {"POST /api/comfyui/reload": (200, {"status": status, "message": status, "config": {}})}
    with serving(given) as seen:
        assert comfyd("reload", "--url", seen.url).code == code


def test_version_and_usage() -> None:
    assert comfyd("version").out == comfyd("--version").out
    assert "version" in comfyd("version", "--json").json
    wrong = comfyd("stats")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean status?" in wrong.err
    assert comfyd().code == 2
    assert comfyd("status", "--bogus").code == 2
    assert comfyd("status", "--url", "ftp://x").code == 2
    assert "  task submit" not in comfyd("--help").out
    assert "commands:" in comfyd("task", "--help").out
