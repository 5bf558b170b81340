"""The kernel ends an instance for memory: told apart from a kill by hand. In a real cgroup with a limit."""

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyd.host.oom import Kills
from comfyd.model.desired import ProbeSpec
from comfyd.model.observed import Phase
from tests.control.conftest import Bench, open_bench
from tests.ports import free_port

LIMIT = 60_000_000
EATER = f"""
import http.server, os, threading, time
class Prompt(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
server = http.server.ThreadingHTTPServer(('127.0.0.1', {{port}}), Prompt)
threading.Thread(target=server.serve_forever, daemon=True).start()
while not os.path.exists({{go!r}}): time.sleep(0.02)
eaten = [bytearray(1_000_000) for _ in range({3 * LIMIT // 1_000_000})]
time.sleep(600)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory cgroup of version 1 with a limit, below our own."""
    rows = [row.split(":", 2) for row in Path("/proc/self/cgroup").read_text().splitlines()]
    path = next((path for _, controllers, path in rows if "memory" in controllers.split(",")), None)
    if path is None:
        pytest.skip("this machine has no memory controller of cgroup version 1")
    made = Path("/sys/fs/cgroup/memory") / path.lstrip("/") / f"comfyd-test-{uuid.uuid4().hex}"
    try:
        made.mkdir()
        (made / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no cgroup can be made: {error}")
    yield made
    made.rmdir()


async def started(bench: Bench, group: Path, go: Path) -> int:
    """Ready, and seen to answer in its cgroup."""
    port = free_port()
    wish = bench.wish("comfyui/0", EATER.format(port=port, go=str(go)), port=port)
    spec = wish.spec.model_copy(update={"probe": ProbeSpec(period_s=0.1)})
    await bench.start(wish.model_copy(update={"spec": spec}))
    await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
    pid = bench.seen("comfyui/0").pid
    assert pid is not None
    (group / "cgroup.procs").write_text(str(pid))
    (run,) = bench.supervisor._runs.values()
    await bench.until(lambda: run.kills_before is not None and run.kills_before.path.startswith(str(group)))
    return pid


@pytest.mark.ns
@pytest.mark.asyncio
async def test_a_kill_for_memory_is_told_from_one_by_hand(root: Path, group: Path) -> None:
    go = root / "go"
    async with open_bench(root) as bench:
        pid = await started(bench, group, go)
        os.kill(pid, signal.SIGKILL)
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        last = bench.seen("comfyui/0").last_exit
        assert last is not None
        assert (last.signal, last.oom, last.reason, last.text()) == ("SIGKILL", False, "", "killed by SIGKILL")

        await started(bench, group, go)
        go.touch()
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE, 30)
        last = bench.seen("comfyui/0").last_exit
        assert last is not None
        assert (last.signal, last.oom, last.asked, last.reason) == ("SIGKILL", True, False, "oom")
        assert last.text() == "killed by the kernel: out of memory"
        assert bench.seen("comfyui/0").crashes == 2


@pytest.mark.asyncio
async def test_the_counter_counts_only_from_the_last_answer_on(root: Path) -> None:
    """Without a cgroup: the file that is watched is an ordinary one."""
    events = root / "memory.events"
    events.write_text("oom_kill 3\n")
    code = f"import os,sys\nopen({str(events)!r},'w').write('oom_kill '+sys.argv[-1])\nos.kill(os.getpid(), 9)"
    async with open_bench(root) as bench:
        for count, oom in (("3", False), ("4", True)):
            wish = bench.wish("comfyui/0", "import time; time.sleep(0.3);" + "\n" + code)
            argv = (sys.executable, "-u", "-c", wish.spec.argv[-1], count)
            await bench.start(wish.model_copy(update={"spec": wish.spec.model_copy(update={"argv": argv})}))
            (run,) = bench.supervisor._runs.values()
            run.kills_before = Kills(str(events), 3)
            await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
            last = bench.seen("comfyui/0").last_exit
            assert last is not None
            assert last.oom is oom
