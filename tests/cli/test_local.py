"""Verbs without a daemon: `validate`, `plan`, `env install --dry-run`, and how `run` refuses to start."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from comfyd.host.files import exclusive_lock
from tests.cli.serving import World, comfyd, environment, serving
from tests.ports import free_port


def write_root(root: Path, instances: list[dict[str, Any]] | None = None) -> Path:
    """A root with one environment that can be installed and the given instances."""
    given = [{"id": 0, "port": free_port(), "name": "main"}] if instances is None else instances
    (root / "config/environments/comm").mkdir(parents=True)
    (root / "config/environments/comm/config.json").write_text('{"name": "comm", "workflows": ["portrait"]}')
    (root / "build/comm").mkdir(parents=True)
    (root / "build/comm/install.sh").write_text("#!/bin/bash\ngit clone https://x/ComfyUI.git /ComfyUI\ncd /ComfyUI\n")
    (root / "instances.json").write_text(json.dumps({"instances": given}, indent=1))
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if stat.S_ISREG(p.lstat().st_mode)}


def test_a_good_root_is_valid_and_nothing_is_written(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    before = contents(root)
    plain, machine = comfyd("validate", "--root", str(root)), comfyd("validate", "--root", str(root), "--json")
    assert (plain.code, machine.code) == (0, 0), plain.err
    assert "valid: 0 errors" in plain.err
    assert machine.json["valid"] is True
    assert contents(root) == before


def test_every_error_with_file_line_and_column(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    file = root / "instances.json"
    file.write_text(
        '{"instances": [\n'
        '  {"id": 0, "port": 3001, "name": "a"},\n'
        '  {"id": 0, "port": 3001, "name": "a", "colour": "red"}\n'
        "]}\n"
    )
    ran, machine = comfyd("validate", "--root", str(root)), comfyd("validate", "--root", str(root), "--json")
    lines = [line for line in ran.out.splitlines() if line.startswith(f"{file}:3:")]
    assert (ran.code, machine.code) == (78, 78)
    assert len(lines) >= 4, ran.out
    assert all(": error: " in line for line in lines)
    assert machine.json["valid"] is False
    assert {"file", "line", "column", "code", "message", "hint"} <= set(machine.json["errors"][0])
    assert len(machine.json["errors"]) == len(lines)


def test_what_cannot_run_is_no_valid_root_either(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    (root / "config/environments/comm/config.json").write_text('{"workflows": [')
    plain, machine = comfyd("validate", "--root", str(root)), comfyd("validate", "--root", str(root), "--json")
    assert (plain.code, machine.code) == (78, 78)
    assert "blocked: 1 errors, 0 warnings" in plain.err
    assert (machine.json["valid"], machine.json["state"]) == (False, "ok")
    assert [i["severity"] for i in machine.json["errors"]] == ["blocked"]


def test_a_candidate_stands_in_for_the_file(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root")
    candidate = tmp_path / "next.json"
    candidate.write_text('{"instances": [{"id": "x"}]}')
    assert comfyd("validate", str(candidate), "--root", str(root)).code == 78
    assert comfyd("validate", "--root", str(root)).code == 0
    missing = comfyd("validate", str(tmp_path / "nowhere.json"), "--root", str(root))
    assert (missing.code, "does not exist" in missing.err) == (2, True)


@pytest.mark.parametrize("damage", ["missing", "empty", "folder", "huge", "fifo", "binary"])
def test_a_file_that_is_none_is_78_and_never_a_traceback(tmp_path: Path, damage: str) -> None:
    root = write_root(tmp_path)
    file = root / "instances.json"
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "fifo":
        os.mkfifo(file)
    elif damage != "missing":
        file.write_bytes({"empty": b"", "huge": b" " * 10_000_000, "binary": b"\xff\xfe\x00"}[damage])
    ran = comfyd("validate", "--root", str(root))
    assert ran.code == 78
    assert "instances.json" in ran.out
    assert "Traceback" not in ran.err


def test_the_plan_without_a_daemon_says_so(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    before = contents(root)
    ran = comfyd("plan", "--json", "--root", str(root))
    assert ran.code == 0, ran.err
    assert ran.json["source"] == "offline"
    assert any("no daemon is running" in note for note in ran.json["notes"])
    assert [(a["action"], a["key"]) for a in ran.json["actions"]] == [("install", "environment/comm")]
    assert ran.json["holds"]["comfyui/0"]["type"] == "waiting_env"
    text = comfyd("plan", "--root", str(root)).out
    assert "~ install environment/comm" in text
    assert "! hold comfyui/0: waiting_env" in text
    assert contents(root) == before


def test_the_plan_sees_installed_trees_and_taken_ports(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taken = {"id": 1, "port": port, "name": "taken", "environment": "ready"}
        root = write_root(tmp_path, [taken, {"id": 2, "port": free_port(), "name": "free", "environment": "ready"}])
        write_installed(root, "ready")
        ran = comfyd("plan", "--json", "--root", str(root), env={"DISABLE_AUTOLAUNCH": "false"})
    assert ("start", "comfyui/2") in [(a["action"], a["key"]) for a in ran.json["actions"]], ran.out
    assert ran.json["holds"]["comfyui/1"]["reason"] == "port_in_use"
    assert str(os.getpid()) in ran.json["holds"]["comfyui/1"]["message"]


def write_installed(root: Path, name: str) -> None:
    """An environment whose generation 1 carries a marker."""
    (root / f"config/environments/{name}").mkdir(parents=True)
    (root / f"config/environments/{name}/config.json").write_text(json.dumps({"name": name}))
    tree = root / f"workspace/.ComfyUI-{name}.1"
    tree.mkdir(parents=True)
    marker = {"environment": name, "generation": 1, "fingerprint": "x", "installed_at": 1.0}
    (tree / ".comfyd-environment.json").write_text(json.dumps(marker))
    (root / f"workspace/ComfyUI-{name}").symlink_to(tree.name)


def test_the_plan_of_a_broken_root_is_78(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    (root / "instances.json").write_text("{")
    ran = comfyd("plan", "--json", "--root", str(root))
    assert (ran.code, ran.json["error"]["code"]) == (78, "invalid_config")


def test_the_plan_asks_a_daemon_if_there_is_one(tmp_path: Path) -> None:
    hold = {"type": "backoff", "reason": "crashed", "message": "ended twice", "hint": "read the log"}
    shown = {"actions": [{"action": "stop", "key": "comfyui/3", "reason": "gone"}], "holds": {"comfyui/1": hold}}
    candidate = tmp_path / "next.json"
    candidate.write_text('{"instances": []}')
    refusal = {"error": {"code": "invalid_config", "message": "next.json:1:1: error: no", "details": {}}, "detail": ""}
    world = World(answers={"GET /api/comfyui/plan": (200, shown), "POST /api/comfyui/plan": (422, refusal)})
    with serving(world) as seen:
        text = comfyd("plan", "--url", seen.url)
        machine = comfyd("plan", "--json", "--url", seen.url)
        preview = comfyd("plan", str(candidate), "--url", seen.url)
    assert text.out.splitlines()[0] == "- stop comfyui/3: gone"
    assert "! hold comfyui/1: backoff/crashed: ended twice" in text.out
    assert (machine.json["source"], machine.json["actions"]) == ("daemon", shown["actions"])
    assert preview.code == 78
    assert seen.requests[-1][3] == {"instances": []}
    assert comfyd("plan", "--url", "http://127.0.0.1:1").code == 69


def test_a_dry_run_shows_the_rewrite_and_writes_nothing(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    before = contents(root)
    ran = comfyd("env", "install", "comm", "--dry-run", "--root", str(root))
    assert ran.code == 0
    assert f"+cd {root}/workspace/.ComfyUI-comm.1" in ran.out
    assert "-cd /ComfyUI" in ran.out
    assert contents(root) == before
    (root / "build/comm/install.sh").write_text("#!/bin/bash\ncd /\ngit clone https://x/ComfyUI.git\n")
    refused = comfyd("env", "install", "comm", "--dry-run", "--json", "--root", str(root))
    assert (refused.code, len(refused.json["problems"])) == (1, 1)
    unknown = comfyd("env", "install", "../comm", "--dry-run", "--root", str(root))
    assert (unknown.code, "known: comm" in unknown.err) == (1, True)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("COMFYD_PORT", "eighty", "COMFYD_PORT="),
        ("COMFYD_HSOT", "1", "did you mean COMFYD_HOST?"),
        ("COMFYD_HOST", "0.0.0.0", "only loopback"),
        ("DISABLE_AUTOLAUNCH", "maybe", "DISABLE_AUTOLAUNCH="),
    ],
)
@pytest.mark.parametrize("verb", ["run", "validate"])
def test_bad_settings_are_78(tmp_path: Path, verb: str, variable: str, value: str, message: str) -> None:
    ran = comfyd(verb, "--root", str(tmp_path), env={variable: value})
    assert (ran.code, ran.out) == (78, "")
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_second_daemon_on_one_root_is_75(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    with exclusive_lock(root / "workspace/.comfyd/daemon.lock", "the state folder"):
        ran = comfyd("run", "--root", str(root), "--port", str(free_port()))
    assert ran.code == 75, ran.err
    assert f"pid {os.getpid()}" in ran.err


def test_ctrl_c_ends_a_running_daemon_well(tmp_path: Path) -> None:
    root = write_root(tmp_path, [])
    command = [sys.executable, "-m", "comfyd", "run", "--json", "--root", str(root), "--port", str(free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment()) as process:
        try:
            deadline = time.monotonic() + 30
            while comfyd("health", "--root", str(root)).code != 0:
                assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            if process.poll() is None:
                process.kill()
        assert process.stderr is not None
        records = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert {"comfyd starts", "comfyd ends"} <= {r["event"] for r in records}
