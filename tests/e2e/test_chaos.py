"""Everything at once, at random: edits, overrides, verbs, kills, restarts and tasks, while procfs is watched.

Seeded: COMFYD_CHAOS_SEED repeats a run (as far as timing allows), COMFYD_CHAOS_S makes it longer.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.daemon import Daemon, add_environment, make_root
from tests.e2e.chaos import ENDS, Chaos, Story
from tests.e2e.sampler import Sampler
from tests.ports import free_port

SECONDS = float(os.environ.get("COMFYD_CHAOS_S", "35"))

DECOY = """
import os, signal, sys, time
def told(number, frame):
    with open("signals", "a") as file:
        file.write(f"{number}\\n")
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, told)
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def start_decoys(folder: Path, daemon: Daemon) -> list[subprocess.Popen[bytes]]:
    """Strangers with the very argv of an instance, one of them with a uuid of its own in its environment."""
    daemon.until_ready(0, 1, 2)
    argv = Path(f"/proc/{daemon.pids()['comfyui/0']}/cmdline").read_bytes().decode().split("\0")[:-1]
    pid_file = daemon.root / "workspace/logs/comfyui_instance_1.pid"
    decoys = []
    for number, uuid in enumerate(["", "f" * 32]):
        place = folder / f"decoy{number}"
        place.mkdir()
        (place / "main.py").write_text(DECOY)
        environ = {**os.environ, **({"COMFYD_PROCESS_UUID": uuid} if uuid else {})}
        decoys.append(subprocess.Popen(
            argv, executable=sys.executable, cwd=place, env=environ, stdout=subprocess.PIPE, start_new_session=True
        ))  # fmt: skip
        assert decoys[-1].stdout is not None
        assert decoys[-1].stdout.readline() == b"ready\n"
    pid_file.write_text(f"{decoys[0].pid}\n")
    return decoys


def end_decoys(decoys: list[subprocess.Popen[bytes]]) -> None:
    for one in decoys:
        one.kill()
        one.wait(10)
        assert one.stdout is not None
        one.stdout.close()


def check_tasks(chaos: Chaos) -> None:
    story, daemon = chaos.story, chaos.daemon
    for task in story.acknowledged.values():
        shown = daemon.get(f"/tasks/{task}")
        assert shown["status"] in ENDS, shown
        assert story.ended.get(task, shown["status"]) == shown["status"]
        if shown["status"] != "COMPLETED" or (shown["output_data"] or {}).get("outside"):
            continue
        urls = shown["output_data"]["urls"]
        assert urls, shown
        for url in urls:
            assert daemon.call("GET", url).body.startswith(b"\x89PNG"), (shown, url)


def check_journal(path: Path) -> None:
    """No process was given a prompt twice."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for event in ("accepted", "executed"):
        given = Counter((e["pid"], e["prompt_id"]) for e in entries if e["event"] == event)
        assert [one for one, times in given.items() if times > 1] == []


@pytest.mark.slow
@pytest.mark.timeout(max(240, int(SECONDS * 3)))
def test_chaos(tmp_path: Path) -> None:
    seed = int(os.environ.get("COMFYD_CHAOS_SEED") or random.randrange(2**32))
    print(f"seed {seed}")
    ports = [free_port() for _ in range(3)]
    instances = [{"id": n, "port": p, "name": f"i{n}", "stop_grace_s": 3} for n, p in enumerate(ports)]
    root = make_root(tmp_path / "root", instances)
    add_environment(root, "outside", workflows=["elsewhere"], dispatch="external", port=free_port())
    journal, story = tmp_path / "journal.jsonl", Story()
    daemon = Daemon(root, FAKE_COMFYUI_JOURNAL=str(journal), COMFYD_FETCH_LEASE_S="3", COMFYD_LEASE_S="6",
                    COMFYD_SHUTDOWN_DRAIN_S="1")  # fmt: skip
    decoys: list[subprocess.Popen[bytes]] = []
    with Sampler(root, frozenset(ports)) as sampler:
        chaos = Chaos(daemon, random.Random(seed), story, sampler)
        try:
            daemon.start()
            decoys += start_decoys(tmp_path, daemon)
            chaos.start_clients()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                chaos.step()
            finish(chaos)
            check_tasks(chaos)
            check_journal(journal)
            assert [one.poll() for one in decoys] == [None, None]
            assert daemon.stop() == 0
            assert sampler.ours() == []
            assert [p for n in range(2) if (p := tmp_path / f"decoy{n}/signals").exists()] == []
        except BaseException:
            print("\n".join(story.told[-60:]))
            raise
        finally:
            chaos.end_clients()
            daemon.end_everything()
            end_decoys(decoys)
            print(
                sampler.samples,
                "samples, slowest",
                sampler.slowest_s,
                dict(story.answers),
                Counter(story.ended.values()),
            )
    assert sampler.violations == []
    assert story.wrong == []


def finish(chaos: Chaos) -> None:
    """Let the queue run dry: outside tasks by a last outside worker."""
    chaos.end_clients()
    chaos.calm_down()
    chaos.daemon.until_ready(0, 1, 2, timeout_s=60)

    def dry() -> bool:
        fetched = chaos.daemon.get("/comfyui-fetch-task?workflow_names=elsewhere")
        if fetched:
            held = {"taskId": fetched["taskId"], "lease_token": fetched["lease_token"]}
            chaos.daemon.post("/comfyui-update-task", {**held, "status": "COMPLETED", "output_data": {"outside": True}})
            return False
        stats = chaos.daemon.get("/api/stats")["stats"]
        return bool(stats["pending"] + stats["fetched"] + stats["processing"] == 0)

    chaos.daemon.until(dry, 60, "every task ended")
    chaos.observe_once()


def test_the_sampler_sees_two_trees_of_a_key_and_two_listeners_of_a_port(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, frozenset([port := free_port()]))
    code = f"import socket,time; s=socket.socket(); s.setsockopt(1,15,1); s.bind(('127.0.0.1',{port})); s.listen(); "
    argv = [sys.executable, "-c", code + "print(flush=True); time.sleep(600)", "data/instances/0"]
    both = []
    try:
        for uuid in ("a" * 32, "b" * 32):
            sampler.sample_once()
            assert sampler.violations == []
            environ = {**os.environ, "COMFYD_PROCESS_UUID": uuid}
            both.append(subprocess.Popen(argv, cwd=tmp_path, env=environ, stdout=subprocess.PIPE))
            assert both[-1].stdout is not None
            assert both[-1].stdout.readline() == b"\n"
        sampler.sample_once()
        assert [what.split(" ", 1)[1][:13] for what in sampler.violations] == ["two trees of ", "2 listeners o"]
    finally:
        end_decoys(both)


def test_a_prompt_given_twice_to_one_process_is_seen(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    entries = [{"pid": pid, "prompt_id": "p", "event": "accepted"} for pid in (1, 2)]
    journal.write_text("".join(json.dumps(one) + "\n" for one in entries))
    check_journal(journal)
    journal.write_text("".join(json.dumps(one) + "\n" for one in [*entries, entries[0]]))
    with pytest.raises(AssertionError):
        check_journal(journal)
