"""Everything at once, at random: edits, overrides, verbs, kills, restarts and tasks, while procfs is watched.

SEED repeats a run (as far as timing allows). It lasts for SECONDS (none in the heavy tier, TIER=heavy) and
until the daemon was killed KILLS times.
"""

import os
import platform
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY, add_environment
from tests.ports import free_port
from tests.reliability.chaos import Chaos, Story
from tests.reliability.checks import ENDS, given_twice
from tests.reliability.ground import ground

HEAVY = os.environ.get("TIER") == "heavy"
SECONDS = float(os.environ.get("SECONDS") or (0 if HEAVY else 35))
KILLS = int(os.environ.get("KILLS") or (200 if HEAVY else 3))


def check_tasks(chaos: Chaos) -> None:
    """Everything that a client was told about its tasks is true in the end."""
    story, daemon = chaos.story, chaos.daemon
    for task in story.acknowledged.values():
        answer = daemon.call("GET", f"/tasks/{task}")
        if answer.status == 404:
            story.counts["lost"] += 1
            continue
        shown = answer.json
        assert shown["status"] in ENDS, shown
        assert story.ended.get(task, shown["status"]) == shown["status"]
        if shown["status"] != "COMPLETED" or (shown["output_data"] or {}).get("outside"):
            continue
        urls = shown["output_data"]["urls"]
        assert urls, shown
        for url in urls:
            assert daemon.call("GET", url).body.startswith(b"\x89PNG"), (shown, url)
    assert story.counts["lost"] == 0


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


def report(chaos: Chaos, began: float) -> str:
    """What a run is told by afterwards: how much of what, how often it went wrong, on what."""
    story, one = chaos.story, chaos.ground
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = {
        "seed": one.seed, "commit": commit or "unknown", "seconds": round(time.monotonic() - began),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}",
        "kills of the daemon": story.counts["kills"], "upgrades in place": story.counts["upgrades"],
        "processes adopted": story.counts["adoptions"], "processes started": len(one.sampler.generations),
        "tasks acknowledged": len(story.acknowledged), "tasks lost": story.counts["lost"],
        "prompts given twice to one process": len(given_twice(one.journal)),
        "ends": dict(sorted(Counter(story.ended.values()).items())),
        "double processes or listeners seen": len(one.sampler.violations), "samples": one.sampler.samples,
        "samples a second": f"{one.sampler.samples / (time.monotonic() - began):.0f}",
        "slowest sample": f"{one.sampler.slowest_s * 1000:.0f} ms", "foreign signals": len(one.decoys.harmed()),
        "broken promises": len(story.wrong),
    }  # fmt: skip
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


@pytest.mark.reliability
@pytest.mark.timeout(7200 if HEAVY else 900)
def test_chaos(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    seed, began = int(os.environ.get("SEED") or random.randrange(2**32)), time.monotonic()
    print(f"seed {seed}")
    quick = {"COMFYD_FETCH_LEASE_S": "3", "COMFYD_LEASE_S": "6"}
    with ground(tmp_path, "chaos", seed, instances=3, **quick) as one:
        add_environment(one.root, "outside", workflows=["elsewhere"], dispatch="external", port=free_port())
        chaos = Chaos(one, random.Random(seed), Story())
        try:
            one.daemon.start().until_ready(0, 1, 2)
            one.decoys.start_likenesses(one.daemon)
            chaos.start_clients()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end or chaos.story.counts["kills"] < KILLS:
                chaos.step()
            finish(chaos)
            check_tasks(chaos)
            one.check_end()
            assert chaos.story.wrong == []
        finally:
            chaos.end_clients()
            record_property("report", report(chaos, began))
            one.told.extend(chaos.story.wrong)
