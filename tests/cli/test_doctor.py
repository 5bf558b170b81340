"""`comfyd doctor`: each check against a real root, with and without a daemon; the bundle and what must not be in it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyd import __version__
from comfyd.client import Client
from comfyd.doctor.bundle import write_bundle
from comfyd.doctor.examine import CHECKS, examine
from comfyd.host import clock, procfs
from comfyd.host.files import exclusive_lock
from comfyd.host.proc import Identity
from comfyd.model.finding import Diagnosis, Finding
from comfyd.settings import load_settings
from tests.cli.serving import World, comfyd, instance, serving
from tests.cli.test_local import contents, write_root
from tests.ports import free_port

MODEL = {"url": "https://user:plant-url-pw@h.example/m.safetensors?sig=plant-url-query", "type": "loras"}


def doctor(root: Path, **environ: str) -> Diagnosis:
    """What the program would find, without the time that starting it takes."""
    settings = load_settings(environ, root=root)
    with Client(root=root, environ=environ, timeout=2) as client:
        return examine(settings, client)[0]


def found(diagnosis: Diagnosis, name: str, subject: str | None = None) -> list[Finding]:
    rows = [f for f in diagnosis.findings if f.name == name and subject in (None, f.subject)]
    assert rows, (name, subject, diagnosis)
    return rows


def worst(diagnosis: Diagnosis, name: str, subject: str | None = None) -> Finding:
    return max(found(diagnosis, name, subject), key=lambda f: ["ok", "warning", "error"].index(f.level))


def install(root: Path, name: str = "comm", python: str = sys.executable) -> Path:
    """A tree of generation 1 with a marker, a Python and the link to the shared models."""
    tree = root / f"workspace/.ComfyUI-{name}.1"
    (tree / "venv/bin").mkdir(parents=True)
    (tree / "venv/bin/python").symlink_to(os.path.realpath(python))
    shared = root / "workspace/shared-models"
    shared.mkdir(exist_ok=True)
    (tree / "models").symlink_to(shared)
    flags = ["--lowvram", "--cpu", "--help"]
    marker = {"environment": name, "generation": 1, "fingerprint": "x", "installed_at": 1.0, "flags": flags}
    (tree / ".comfyd-environment.json").write_text(json.dumps(marker))
    (root / f"workspace/ComfyUI-{name}").symlink_to(tree.name)
    return tree


def test_every_check_says_something_and_nothing_is_written(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    install(root)
    before = contents(root)
    ran = doctor(root)
    assert ran.count("error") == 0, ran
    assert ran.source == "offline"
    assert {f.name for f in ran.findings} == set(CHECKS) - {"queue"}
    assert all(f.hint for f in ran.findings if f.level != "ok")
    assert worst(ran, "daemon").level == "warning"
    assert "it does not run: no daemon" in worst(ran, "instance", "main").message
    assert "packages" in worst(ran, "venv", "comm").message
    assert worst(ran, "models", "comm").level == "ok"
    assert worst(ran, "config").level == "ok"
    assert contents(root) == before


def test_the_program_prints_text_or_json_and_ends_with_1_for_errors(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    ran = comfyd("doctor", "--root", str(root))
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"ok       version      comfyd {__version__}, Python ")
    assert any(line.startswith("warning  environment  comm: not installed yet") for line in lines)
    assert any(line.strip().startswith("-> ") for line in lines)
    assert "0 errors, " in ran.err
    (root / "instances.json").write_text("{")
    broken = comfyd("doctor", "--json", "--root", str(root))
    assert (broken.code, broken.json["errors"]) == (1, 1)
    assert {"name", "subject", "level", "message", "hint"} == set(broken.json["findings"][0])


def test_a_broken_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    (root / "instances.json").write_text('{"instances": [\n  {"id": "x", "port": 1, "name": "a"}\n]}')
    ran = doctor(root)
    (issue,) = found(ran, "config")
    assert issue.level == "error"
    assert "instances.json:2:" in issue.message


def test_arguments_are_compared_with_the_installed_environment(tmp_path: Path) -> None:
    root = write_root(tmp_path, [{"id": 0, "port": free_port(), "name": "main", "extra_args": "--lowvrm"}])
    install(root)
    doubt = worst(doctor(root), "config")
    assert (doubt.level, doubt.hint) == ("warning", "did you mean --lowvram?")
    checked = comfyd("validate", "--json", "--root", str(root))
    assert (checked.code, [w["code"] for w in checked.json["warnings"]]) == (0, ["unknown_flag"])
    planned = comfyd("plan", "--json", "--root", str(root)).json["warnings"]["comfyui/0"]
    assert [(w["type"], w["hint"]) for w in planned] == [("argument_warning", "did you mean --lowvram?")]
    assert "? doubt comfyui/0: argument_warning/unknown_flag" in comfyd("plan", "--root", str(root)).out


def test_a_port_that_somebody_else_holds_is_named_with_its_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as second:
        port, api = listener.getsockname()[1], second.getsockname()[1]
        root = write_root(tmp_path, [{"id": 0, "port": port, "name": "main"}])
        install(root)
        ran = doctor(root, COMFYD_PORT=str(api))
    for number in (port, api):
        held = worst(ran, "port", str(number))
        assert held.level == "error"
        assert f"process {os.getpid()} (" in held.message
    assert "blocked/port_in_use" in worst(ran, "instance", "main").message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gone", "cannot be run: No such file"),
        ("false", "ended with exit code 1"),
        ("lying", "answers nonsense"),
    ],
)
def test_a_python_that_does_not_run_is_an_error(tmp_path: Path, damage: str, message: str) -> None:
    root = write_root(tmp_path)
    python = install(root) / "venv/bin/python"
    python.unlink()
    if damage != "gone":
        python.write_text("#!/bin/sh\n" + ("exit 1\n" if damage == "false" else "echo hello\n"))
        python.chmod(0o755)
    ran = doctor(root)
    assert message in worst(ran, "venv", "comm").message


@pytest.mark.parametrize(("what", "level"), [("folder", "warning"), ("dangling", "error"), ("extra", "ok")])
def test_models_that_an_environment_does_not_see(tmp_path: Path, what: str, level: str) -> None:
    root = write_root(tmp_path)
    tree = install(root)
    (tree / "models").unlink()
    if what == "dangling":
        (tree / "models").symlink_to("/nowhere/at/all")
    else:
        (tree / "models").mkdir()
    if what == "extra":
        (tree / "extra_model_paths.yaml").write_text("{}")
    assert worst(doctor(root), "models", "comm").level == level


@contextlib.contextmanager
def tagged(root: Path, mark: str) -> Iterator[int]:
    """A process that looks as if the daemon of `root` had started it."""
    owner = procfs.owner_tag(root / "workspace/.comfyd")
    env = {**os.environ, procfs.OWNER_VARIABLE: owner, procfs.UUID_VARIABLE: mark}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=env) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_process_with_our_tag_and_no_record_is_shown(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    with tagged(root, "feed") as pid:
        stray = worst(doctor(root), "process", str(pid))
    assert (stray.level, "in no record" in stray.message) == ("warning", True)
    assert f"kill {pid}" in stray.hint


def test_what_runs_on_without_a_daemon_is_shown_as_such(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    state = root / "workspace/.comfyd"
    state.mkdir(parents=True, mode=0o700)
    mark = uuid.uuid4().hex
    with tagged(root, mark) as pid:
        stat = procfs.read_stat(pid)
        assert stat is not None
        identity = Identity(pid, stat.starttime, clock.boot_id(), procfs.pid_namespace(), mark)
        record = {"op": "start", "key": "comfyui/0", **identity.as_dict()}
        (state / "run.journal").write_text(json.dumps(record) + "\n")
        ran = doctor(root)
    assert f"comfyui/0 (pid {pid})" in worst(ran, "process").message
    assert worst(ran, "process").hint == "`comfyd run` adopts them as they are"
    assert f"pid {pid} runs" in worst(ran, "instance", "main").message


def test_a_daemon_that_holds_the_state_folder_and_does_not_answer_is_an_error(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    state = root / "workspace/.comfyd"
    state.mkdir(parents=True, mode=0o755)
    with exclusive_lock(state / "daemon.lock", "it"):
        ran = doctor(root)
    assert f"it runs (pid {os.getpid()}) but does not answer" in worst(ran, "daemon").message
    assert "chmod 700" in worst(ran, "state").hint
    assert "no daemon runs" in worst(doctor(root), "daemon").message, "a stale lock file names nobody"


def served(root: Path) -> World:
    causes = [
        {"type": "bad_arguments", "reason": "exit_2", "message": "main.py: error: no --foo", "hint": "correct it"},
        {"type": "backoff", "reason": "crashed", "message": "exit code 2", "hint": "read its log"},
    ]
    ended = {"code": None, "signal": "SIGKILL", "oom": True, "asked": False, "last_lines": ["plant-in-last-lines"]}
    world = World(
        instances=[
            instance(0, "main", 3001),
            instance(1, "broken", 3002, "backoff", conditions=causes, last_exit=ended),
        ]
    )
    world.environments = [{"name": "comm", "installed": True, "state": "installed", "generation": 2, "conditions": []}]
    world.answers = {
        "GET /api/comfyui/plan": (200, {"actions": [], "holds": {}}),
        "GET /api/stats": (200, {"success": True, "stats": {"pending": 3, "processing": 1}}),
    }
    return world


def test_a_daemon_is_asked_and_every_condition_is_a_line(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    install(root)
    with serving(served(root), root / "workspace/.comfyd/api.sock"):
        ran = doctor(root)
    assert ran.source == "daemon"
    assert worst(ran, "daemon").level == "ok"
    assert [f.message for f in found(ran, "instance", "broken")] == [
        "bad_arguments/exit_2: main.py: error: no --foo",
        "backoff/crashed: exit code 2",
    ]
    assert worst(ran, "instance", "main").level == "ok"
    assert "broken ended for lack of memory" in worst(ran, "memory").message
    assert worst(ran, "queue").message.startswith("3 tasks wait, 1 run, 1 instances are ready")
    assert worst(ran, "environment", "comm").level == "ok"


def plant(root: Path) -> dict[str, str]:
    """Secrets in every place where somebody may put one; the environment that doctor is run with."""
    config = root / "config/environments/comm/config.json"
    headers = {"X-Custom": "plant-header-value", "Authorization": "Bearer plant-bearer"}
    models = [MODEL, {"url": "https://h.example/n", "type": "vae", "headers": headers, "token_env": "MY_PRIVATE"}]
    nodes = ["https://x:plant-node-token@git.example/owner/repo"]
    config.write_text(json.dumps({"name": "comm", "models": models, "nodes": nodes}))
    first = {"id": 0, "port": free_port(), "name": "main", "extra_args": "--comfy-api-key plant-argument --cpu"}
    first["env"] = {"MY_API_KEY": "plant-instance-key", "DB": "postgres://u:plant-db-pw@h/x"}
    (root / "instances.json").write_text(json.dumps({"instances": [first]}, indent=1))
    logs = root / "workspace/logs"
    logs.mkdir(parents=True)
    text = "GET https://a:plant-log-pw@h/?token=plant-log-query\nAuthorization: Bearer plant-log-bearer\n"
    text += "plain: plant-environment-value and plant-by-token-env\nhf_plantPlantPlantPlant01\n"
    (logs / "comfyui_instance_0.log").write_text("x" * 300_000 + " plant-cut\n" + text)
    (logs / "comfyd.log").write_text('{"event": "x", "password": "plant-log-json"}\n')
    (logs / "fastapi.log").symlink_to("comfyd.log")
    records = root / "workspace/.comfyd/installs"
    records.mkdir(parents=True)
    condition = {
        "type": "install_failed",
        "reason": "script_failed",
        "message": "https://q:plant-record@h/",
        "hint": "",
    }
    (records / "comm.json").write_text(json.dumps({"environment": "comm", "state": "failed", "condition": condition}))
    (records / "torn.json").write_text('{"token": "plant-torn')
    return {
        "HF_TOKEN": "plant-environment-value",
        "MY_PRIVATE": "plant-by-token-env",
        "JUPYTER_PASSWORD": "plant-jupyter",
        "COMFYUI_SECRET_THING": "plant-secret-thing",
        "COMFYD_DATABASE_URL": "postgresql://c:plant-db-url@db/queue?sslpassword=plant-db-query",
        "COMFYUI_MODEL_URL": "https://h/?x=plant-any-query",
    }


def members_of(file: Path) -> dict[str, str]:
    with tarfile.open(file) as archive:
        read = {m.name.removeprefix("comfyd-report/"): archive.extractfile(m) for m in archive.getmembers()}
        return {name: data.read().decode() for name, data in read.items() if data is not None}


@pytest.mark.parametrize("daemon", [False, True])
def test_the_bundle_has_everything_but_secrets(tmp_path: Path, daemon: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_root(tmp_path / "root")
    install(root)
    environ, file = plant(root), tmp_path / "report.tar.gz"
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    url = None
    with contextlib.ExitStack() as stack:
        if daemon:
            stack.enter_context(serving(served(root), root / "socket/api.sock"))
            url = f"unix:{root / 'socket/api.sock'}"
        with Client(url, root=root, environ=environ) as client:
            diagnosis, scene = examine(load_settings(environ, root=root), client)
        written = write_bundle(file, diagnosis, scene)
    assert diagnosis.source == ("daemon" if daemon else "offline")
    assert file.stat().st_mode & 0o777 == 0o600
    members = members_of(file)
    assert set(members) == set(written)
    assert set(members) >= {
        "doctor.txt", "doctor.json", "status.json", "plan.json", "versions.json", "variables.json",
        "config/instances.json", "config/environments/comm.json", "logs/comfyd.log", "logs/comfyui_instance_0.log",
        "installs/comm.json",
    }  # fmt: skip
    assert "logs/fastapi.log" not in members
    left = {f"{name}: {line}" for name, text in members.items() for line in text.splitlines() if "plant" in line}
    assert {line for line in left if "plant-in-last-lines" not in line} == set()
    assert json.loads(members["config/instances.json"])["instances"][0]["name"] == "main"
    assert json.loads(members["status.json"])["instances"][0]["name"] == "main"
    assert json.loads(members["versions.json"])["comfyd"] == __version__
    assert json.loads(members["variables.json"])["doctor"]["HF_TOKEN"] == "***"
    assert json.loads(members["doctor.json"])["findings"]
    assert "h.example/m.safetensors" in members["config/environments/comm.json"]
    assert len(members["logs/comfyui_instance_0.log"]) < 300_000


def test_the_program_writes_the_bundle_and_says_where(tmp_path: Path) -> None:
    root, file = write_root(tmp_path / "root"), tmp_path / "report.tar.gz"
    ran = comfyd("doctor", "--json", "--root", str(root), "--bundle", str(file), env={"HF_TOKEN": "plant-by-program"})
    assert (ran.code, ran.json["bundle"]) == (0, str(file)), ran.err
    members = members_of(file)
    assert set(members) == set(ran.json["members"])
    assert not [name for name, text in members.items() if "plant-by" in text]
    assert "look through it before you give it away" in ran.err


def test_a_bundle_that_cannot_be_written_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    folder = comfyd("doctor", "--root", str(root), "--bundle", str(tmp_path))
    nowhere = comfyd("doctor", "--root", str(root), "--bundle", str(tmp_path / "no/file.tar.gz"))
    assert (folder.code, nowhere.code) == (2, 2)
    assert "is a folder" in folder.err
    assert "does not exist" in nowhere.err


def test_a_check_that_fails_costs_only_its_own_line(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    world = served(root)
    world.instances = [{"key": "comfyui/0"}, 5]  # type: ignore[list-item]
    with serving(world, root / "workspace/.comfyd/api.sock"):
        ran = doctor(root)
    assert "this check could not be made" in worst(ran, "instance").message
    assert worst(ran, "disk").level in ("ok", "warning")
