"""Torn, missing, unreadable and swapped files, and floods of edits: what is not a valid wish moves nothing."""

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, make_root
from tests.faults.surroundings import Shim
from tests.faults.world import (
    CONVERGED_S,
    SLACK_S,
    config,
    moved,
    passes,
    transitions,
    until_config,
)

pytestmark = pytest.mark.timeout(120)


def write_in_pieces(path: Path, data: bytes, pieces: int = 10, pause_s: float = 0.004) -> float:
    """As an editor that truncates and writes slowly. Returns how long the file was not whole."""
    begun = time.monotonic()
    size = len(data) // pieces + 1
    with path.open("wb", buffering=0) as file:
        for begin in range(0, len(data), size):
            file.write(data[begin : begin + size])
            time.sleep(pause_s)
    return time.monotonic() - begun


def fleet(daemon: Daemon, **changes: Any) -> bytes:
    """instances.json with `changes` to instance 0, padded to 20 kB."""
    data = json.loads((daemon.root / "instances.json").read_text())
    data["instances"][0].update(changes)
    return json.dumps({**data, "_padding": "x" * 20_000}, indent=1).encode()


def renamed(daemon: Daemon, name: str) -> None:
    daemon.until(lambda: daemon.instance(0)["name"] == name, CONVERGED_S + SLACK_S, f"instance 0 is called {name}")


def test_prefixes_and_slow_writes_of_a_valid_file_move_nothing(daemon: Daemon) -> None:
    """A prefix is an error with a place, a file that is being written is none."""
    daemon.start().until_ready(0, 1)
    path, before = daemon.root / "instances.json", moved(daemon)
    whole = fleet(daemon, description="more text")
    for share in (0.003, 0.02, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        issue = until_config(daemon, "stale")["issues"][0]
        assert (issue["file"], issue["line"] > 0, issue["column"] > 0) == (str(path), True, True)
        path.write_bytes(whole)
        until_config(daemon, "ok")
    refused = len([t for t in transitions(daemon, "config") if t["to"] == "stale"])
    took = []
    for turn in range(5):
        took.append(write_in_pieces(path, fleet(daemon, name=f"slow-{turn}")))
        renamed(daemon, f"slow-{turn}")
    until_config(daemon, "ok")
    assert refused == 3
    torn = [t for t in transitions(daemon, "config") if t["to"] != "ok"][refused:]
    assert len(torn) <= sum(one > 0.2 for one in took), "only a write that takes longer than the retries may be noticed"
    assert moved(daemon) == before


@pytest.mark.slow
def test_files_that_cannot_be_read_move_nothing(daemon: Daemon, shim: Shim) -> None:
    daemon.start().until_ready(0, 1)
    path, before = daemon.root / "instances.json", moved(daemon)
    good = path.read_bytes()

    path.unlink()
    until_config(daemon, "missing")
    path.mkdir()
    assert "not a regular file" in until_config(daemon, "stale")["issues"][0]["message"]
    path.rmdir()
    path.write_bytes(good.replace(b"comfyui-main", b"back-again"))
    renamed(daemon, "back-again")

    for number in (errno.EIO, errno.EACCES):
        shim.fail_reading(path, number)
        path.write_bytes(good)
        assert os.strerror(number) in until_config(daemon, "stale")["issues"][0]["message"]
        shim.fail_reading(path, 0)
        path.write_bytes(good.replace(b"comfyui-main", b"readable"))
        renamed(daemon, "readable")
        until_config(daemon, "ok")
    assert shim.count > 0
    assert moved(daemon) == before


@pytest.mark.slow
def test_folders_that_vanish_and_come_back_move_nothing(daemon: Daemon) -> None:
    """Made again between two looks, a folder has the same path and another inode, which nobody watches yet."""
    daemon.start().until_ready(0, 1)
    folder, before = daemon.root / "config", moved(daemon)

    def describe(text: str) -> None:
        file = folder / "environments/comm/config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "description": text}))

    def described(text: str) -> None:
        daemon.until(
            lambda: daemon.get("/environments/comm")["description"] == text,
            CONVERGED_S + SLACK_S, f"described as {text}",
        )  # fmt: skip

    folder.rename(daemon.root / "away")
    daemon.until(lambda: [i["code"] for i in config(daemon)["issues"]] == ["environments_lost"], CONVERGED_S + SLACK_S)
    assert moved(daemon) == before
    assert daemon.get("/environments/comm")["installed"]
    (daemon.root / "away").rename(folder)
    daemon.until(lambda: config(daemon)["issues"] == [], CONVERGED_S + SLACK_S, "nothing is missing")
    describe("back")
    described("back")
    for turn in range(3):
        shutil.copytree(folder, daemon.root / "copy")
        shutil.rmtree(folder)
        (daemon.root / "copy").rename(folder)
        time.sleep(0.3)  # the old watch is gone, and no event tells of what comes now but one of the new folder
        describe(f"turn {turn}")
        described(f"turn {turn}")
    assert moved(daemon) == before


def test_a_services_file_that_is_removed_ends_no_service(daemon: Daemon) -> None:
    services = daemon.root / "config/services.json"
    services.write_text(json.dumps({"services": [{"name": "sleeper", "command": ["sleep", "600"]}]}))
    daemon.start()
    daemon.until(lambda: "sidecar/sleeper" in daemon.pids(), what="the service runs")
    daemon.until_ready(0, 1)
    before = moved(daemon)
    services.unlink()
    daemon.until(lambda: [i["code"] for i in config(daemon)["issues"]] == ["file_missing"], CONVERGED_S + SLACK_S)
    assert moved(daemon) == before
    services.write_text('{"services": []}')
    daemon.until(lambda: "sidecar/sleeper" not in daemon.pids(), what="an empty list ends it")


@pytest.mark.slow
def test_a_swapped_config_map_is_never_missing(tmp_path: Path) -> None:
    """The layout of Kubernetes: file -> ..data/file, ..data -> a folder; the old folder goes at once."""
    root = make_root(tmp_path / "root")
    mount, good = tmp_path / "mount", (root / "instances.json").read_text()

    def swap(turn: int) -> None:
        folder = mount / f"..{turn}"
        folder.mkdir(parents=True)
        (folder / "instances.json").write_text(good.replace("comfyui-main", f"revision-{turn}"))
        (mount / "..data_tmp").symlink_to(folder.name)
        (mount / "..data_tmp").rename(mount / "..data")
        shutil.rmtree(mount / f"..{turn - 1}", ignore_errors=True)

    swap(0)
    (mount / "instances.json").symlink_to("..data/instances.json")
    daemon = Daemon(root, COMFYD_INSTANCES_FILE=str(mount / "instances.json"), COMFYD_POLL_S="600")
    try:
        daemon.start().until_ready(0, 1)
        before = moved(daemon)
        for turn in range(1, 101):
            swap(turn)
            if turn % 10 == 0:
                renamed(daemon, f"revision-{turn}")
        assert [t["to"] for t in transitions(daemon, "config") if t["to"] != "ok"] == []
        assert moved(daemon) == before
    finally:
        daemon.end_everything()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in place", "by rename"])
def test_a_thousand_edits_in_two_seconds_cost_few_passes_and_restarts(daemon: Daemon, how: str) -> None:
    daemon.start().until_ready(0, 1)
    path, before, passed = daemon.root / "instances.json", moved(daemon), passes(daemon)
    base = json.loads(path.read_text())
    begun = time.monotonic()
    for turn in range(1000):
        for one in base["instances"]:
            one["extra_args"] = ["--reserve-vram", str(turn + 1)]
        target = path if how == "in place" else path.with_name("instances.json.new")
        target.write_text(json.dumps(base))
        if how == "by rename":
            target.rename(path)
        time.sleep(max(0.0, begun + (turn + 1) / 500 - time.monotonic()))
    took = time.monotonic() - begun

    def final() -> bool:
        argv = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in daemon.pids().values()]
        return len(argv) == 2 and all(b"1000" in words for words in argv)

    daemon.until(final, CONVERGED_S + SLACK_S, "both run with the last edit")
    daemon.until_ready(0, 1)
    starts = [t["subject"] for t in transitions(daemon, "instance") if t["to"] == "starting"]
    allowed = 2 if took < 4.5 else 3  # a machine that is too busy to write a thousand files in time
    assert max(starts.count(key) for key in before) - 1 <= allowed, (took, starts)
    assert passes(daemon) - passed <= 25 + 10 * max(0.0, took - 2.5), took


@pytest.mark.slow
def test_every_kind_of_invalid_meaning_is_listed_at_once_and_moves_nothing(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    path, before, good = daemon.root / "instances.json", moved(daemon), (daemon.root / "instances.json").read_text()
    first = json.loads(good)["instances"][0]
    path.write_text(
        '{"instances": [\n'
        f' {{"id": 0, "port": {first["port"]}, "name": "a"}},\n'
        f' {{"id": 0, "port": {first["port"]}, "name": "a"}},\n'
        f' {{"id": 3, "port": {daemon.port}, "name": "own-port", "prot": 1}},\n'
        ' {"id": "4", "port": NaN, "name": "types", "name": "twice", "enabled": "yes"}\n'
        "]}\n"
    )
    seen = until_config(daemon, "stale")
    found = {(i["code"], i["path"], i["line"]) for i in seen["issues"]}
    assert found >= {
        ("duplicate_id", "/instances/1/id", 3), ("duplicate_port", "/instances/1/port", 3),
        ("duplicate_name", "/instances/1/name", 3), ("api_port", "/instances/2/port", 4),
        ("unknown_key", "/instances/2/prot", 4), ("invalid_number", "/instances/3/port", 5),
        ("duplicate_key", "/instances/3/name", 5), ("bad_value", "/instances/3/id", 5),
        ("bad_value", "/instances/3/enabled", 5),
    }, found  # fmt: skip
    assert seen["revision"] != seen["seen_revision"]
    assert moved(daemon) == before
    path.write_text(good)
    until_config(daemon, "ok")

    environment = daemon.root / "config/environments/comm/config.json"
    whole = environment.read_text()
    environment.write_text('{"workflows": 5}')
    daemon.until(lambda: [i["severity"] for i in config(daemon)["issues"]] == ["blocked"], what="it is told")
    environment.write_text(whole)
    daemon.until(lambda: config(daemon)["issues"] == [], what="nothing is wrong any more")
    assert moved(daemon) == before
