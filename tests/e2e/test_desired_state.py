"""Editing instances.json: only what changed moves; what is broken moves nothing."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, add_environment
from tests.ports import free_port


def entry(data: dict[str, Any], number: int) -> dict[str, Any]:
    return next(i for i in data["instances"] if i["id"] == number)


def test_add_change_disable_enable_and_remove_move_only_what_changed(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    third = {"id": 2, "port": free_port(), "name": "third"}
    daemon.edit(lambda d: d["instances"].append(third))
    daemon.until_ready(2)
    assert daemon.pids()["comfyui/0"] == before["comfyui/0"]

    daemon.edit(lambda d: entry(d, 1).update(description="words change nothing", name="renamed"))
    daemon.until(lambda: daemon.instance(1)["name"] == "renamed")
    assert daemon.pids()["comfyui/1"] == before["comfyui/1"]

    daemon.edit(lambda d: entry(d, 1).update(extra_args="--lowvram"))
    daemon.until(lambda: daemon.pids().get("comfyui/1", before["comfyui/1"]) != before["comfyui/1"])
    daemon.until_ready(1)
    argv = Path(f"/proc/{daemon.pids()['comfyui/1']}/cmdline").read_bytes().split(b"\0")
    assert b"--lowvram" in argv

    daemon.edit(lambda d: entry(d, 1).update(enabled=False))
    daemon.until(lambda: daemon.state(1) == "stopped")
    daemon.edit(lambda d: entry(d, 1).update(enabled=True))
    daemon.until_ready(1)

    daemon.edit(lambda d: d["instances"].remove(entry(d, 2)))
    daemon.until(lambda: "comfyui/2" not in daemon.pids())
    assert daemon.pids()["comfyui/0"] == before["comfyui/0"]
    assert daemon.instance(0)["restarts"] == 0


def test_two_ports_are_swapped(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    ports = {n: daemon.instance(n)["port"] for n in (0, 1)}

    def swap(data: dict[str, Any]) -> None:
        entry(data, 0)["port"], entry(data, 1)["port"] = ports[1], ports[0]

    daemon.edit(swap)
    daemon.until(lambda: daemon.instance(0)["port"] == ports[1] and daemon.instance(1)["port"] == ports[0])
    daemon.until_ready(0, 1)


def test_an_instance_moves_to_another_environment_and_back(daemon: Daemon) -> None:
    add_environment(daemon.root, "other", workflows=["elsewhere"])
    daemon.start().until_ready(0, 1)
    unmoved = daemon.pids()["comfyui/0"]
    daemon.edit(lambda d: entry(d, 1).update(environment="other"))
    daemon.until(lambda: daemon.instance(1)["environment"] == "other" and daemon.instance(1)["ready"])
    cwd = os.readlink(f"/proc/{daemon.pids()['comfyui/1']}/cwd")
    assert cwd == str(daemon.root / "workspace/.ComfyUI-other.1")
    assert daemon.pids()["comfyui/0"] == unmoved


BROKEN: list[tuple[str, str]] = [
    ('{"instances": [{"id": 0, "port": 1', "line"),
    ('{"instances": [{"id": 0, "port": 3001, "name": "a", "extra": 1}]}', "extra"),
    ('{"instances": [{"id": 0, "port": 3001, "name": "a"}, {"id": 0, "port": 3002, "name": "b"}]}', "id"),
    ('{"instances": [{"id": 0, "port": 3001, "name": "a"}, {"id": 1, "port": 3001, "name": "b"}]}', "port"),
    ('{"instances": [{"id": 0, "port": 3001, "name": "a"}, {"id": 1, "port": 3002, "name": "a"}]}', "name"),
    ('{"instances": [{"id": 0, "port": 3001, "name": "../x"}]}', "name"),
    ('{"instances": [{"id": 0, "port": 3001, "name": "a\\nb"}]}', "name"),
    ('{"instances": [{"id": 0, "port": 3001, "name": "a", "extra_args": "--x \\"unclosed"}]}', "quot"),
    ("", "empty"),
    ("x" * 10_000_000, "bytes"),
]


def test_a_broken_revision_says_everything_and_moves_nothing(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    path = daemon.root / "instances.json"
    good, before = path.read_text(), daemon.pids()
    for text, word in BROKEN:
        path.write_text(text)
        daemon.until(lambda: daemon.get("/api/comfyui/status")["config"]["state"] == "stale", what=f"{text[:60]} stale")
        issues = daemon.get("/api/comfyui/status")["config"]["issues"]
        assert any(word in i["message"].lower() + i["path"].lower() + str(i) for i in issues), (word, issues)
        assert daemon.pids() == before
        path.write_text(good)
        daemon.until(lambda: daemon.get("/api/comfyui/status")["config"]["state"] == "ok", what="ok again")
    assert daemon.pids() == before
    assert "config issue" in (daemon.root / "workspace/logs/comfyd.log").read_text()


def test_a_removed_file_moves_nothing_and_comes_back(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    path, before = daemon.root / "instances.json", daemon.pids()
    good = path.read_text()
    path.unlink()
    daemon.until(lambda: daemon.get("/api/comfyui/status")["config"]["state"] == "missing")
    assert daemon.pids() == before
    path.write_text(good.replace("comfyui-main", "still-here"))
    daemon.until(lambda: daemon.instance(0)["name"] == "still-here")
    assert daemon.pids() == before


def test_the_last_good_state_survives_a_restart_with_a_broken_file(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    (daemon.root / "instances.json").write_text('{"instances": [')
    daemon.until(lambda: daemon.get("/api/comfyui/status")["config"]["state"] == "stale")
    daemon.kill()
    daemon.start()
    daemon.until_ready(0, 1)
    assert daemon.pids() == before
    assert daemon.get("/api/comfyui/status")["config"]["state"] == "stale"


def test_a_port_held_by_somebody_else_is_named_and_taken_once_free(daemon: Daemon) -> None:
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        port = foreign.getsockname()[1]
        daemon.edit(lambda d: entry(d, 1).update(port=port))
        daemon.start().until_ready(0)
        daemon.until(lambda: daemon.state(1) == "blocked")
        condition = daemon.instance(1)["conditions"][0]
        assert condition["reason"] == "port_in_use"
        assert str(os.getpid()) in condition["message"]
        plan = daemon.get("/api/comfyui/plan")
        assert plan["holds"]["comfyui/1"]["type"] == "blocked"
    daemon.until(lambda: "comfyui/1" in daemon.pids(), 10, "it starts within 10 s of the port being free")
    daemon.until_ready(1)


def test_an_unknown_environment_holds_only_its_instance(daemon: Daemon) -> None:
    daemon.edit(lambda d: entry(d, 1).update(environment="nowhere"))
    daemon.start().until_ready(0)
    shown = daemon.instance(1)
    assert shown["pid"] is None
    assert "nowhere" in shown["conditions"][0]["message"]


def test_nothing_is_ever_given_to_a_shell(daemon: Daemon) -> None:
    mark = daemon.root / "pwned"
    args = f"--extra-thing \"$(touch {mark})\" '`touch {mark}`' ; touch {mark}"
    daemon.edit(lambda d: entry(d, 1).update(extra_args=args))
    daemon.start().until_ready(0)
    daemon.until(lambda: daemon.instance(1)["last_exit"] is not None)
    daemon.until(lambda: any(c["type"] == "bad_arguments" for c in daemon.instance(1)["conditions"]))
    assert not mark.exists()


def test_comments_and_private_keys_are_accepted(daemon: Daemon) -> None:
    text = (daemon.root / "instances.json").read_text()
    (daemon.root / "instances.json").write_text("// mine\n" + text.replace("{", '{ /* x */ "_note": "n",', 1))
    daemon.start().until_ready(0, 1)


def test_a_crashed_instance_is_replaced_at_once_and_the_exit_is_shown(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    os.kill(before["comfyui/0"], signal.SIGKILL)
    daemon.until(lambda: daemon.pids().get("comfyui/0", before["comfyui/0"]) != before["comfyui/0"])
    daemon.until_ready(0)
    shown = daemon.instance(0)
    assert shown["last_exit"]["signal"] == "SIGKILL"
    assert shown["restarts"] == 1
    assert daemon.pids()["comfyui/1"] == before["comfyui/1"]


@pytest.mark.parametrize("polling", ["true", "false"])
def test_edits_are_seen_with_and_without_inotify(root: Path, polling: str) -> None:
    one = Daemon(root, COMFYD_FORCE_POLLING=polling, COMFYD_POLL_S="0.3" if polling == "true" else "600")
    try:
        one.start().until_ready(0, 1)
        replacement = root / "instances.json.new"
        replacement.write_text((root / "instances.json").read_text().replace("comfyui-main", "by-rename"))
        replacement.rename(root / "instances.json")
        one.until(lambda: one.instance(0)["name"] == "by-rename", 5)
    finally:
        one.end_everything()


def test_a_failing_install_is_shown_with_its_end_and_holds_only_its_instances(daemon: Daemon) -> None:
    add_environment(daemon.root, "bad", "echo the wheel is missing; exit 7")
    daemon.edit(lambda d: entry(d, 1).update(environment="bad"))
    daemon.start().until_ready(0)
    daemon.until(lambda: daemon.instance(1)["conditions"][0]["reason"] == "install_failed")
    install = daemon.get("/environments/bad/install")["install"]
    assert install["state"] == "failed"
    assert "the wheel is missing" in json.dumps(install["conditions"])
    before = daemon.pids()
    add_environment(daemon.root, "bad")
    daemon.until_ready(1)
    assert daemon.pids()["comfyui/0"] == before["comfyui/0"]
