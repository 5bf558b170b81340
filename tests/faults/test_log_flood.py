"""100 MB in ten seconds, a line of 10 MB, bytes that no terminal wants: the daemon stays small, quick and truthful."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.faults.surroundings import HERE, missing
from tests.faults.world import records

LINES, SECONDS = 1_000_000, 10
LIMIT, KEEP = 20 * 1024 * 1024, 5
NUMBERED = re.compile(rb"^0\d{98}$", re.MULTILINE)


def compile_flood(folder: Path) -> Path:
    if shutil.which("gcc") is None:
        missing("no gcc")
    program = folder / "flood"
    subprocess.run(["gcc", "-O2", "-o", program, HERE / "flood.c"], check=True)
    return program


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ask_status(daemon: Daemon) -> float:
    begun = time.perf_counter()
    daemon.get("/api/comfyui/status")
    return time.perf_counter() - begun


@contextmanager
def following(daemon: Daemon, name: str, into: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`comfyd logs NAME -f` with its output in a file."""
    command = [sys.executable, "-m", "comfyd", "logs", name, "-f", "--tail", "0"]
    with into.open("wb") as out:
        process = subprocess.Popen([*command, "--url", f"http://127.0.0.1:{daemon.port}"], stdout=out)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def holes(numbers: list[int], first: int = 0) -> list[int]:
    """How many are missing at each place where some are; fails if one comes twice or too late."""
    steps = list(pairwise([first - 1, *numbers, LINES]))
    assert all(b > a for a, b in steps), "a line came twice or out of order"
    return [b - a - 1 for a, b in steps if b > a + 1]


def numbers_in(data: bytes) -> list[int]:
    return [int(one) for one in NUMBERED.findall(data)]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_flood_of_output(daemon: Daemon, tmp_path: Path) -> None:
    mark, shown = tmp_path / "mark", tmp_path / "shown"
    (daemon.root / "instances.json").write_text('{"instances": []}')
    daemon.start()
    ordinary = [ask_status(daemon) for _ in range(200)]
    assert daemon.process is not None
    rss = resident_bytes(daemon.process.pid)
    command = [str(compile_flood(tmp_path)), str(LINES), str(SECONDS), str(mark)]
    flooder = {"name": "flooder", "command": command, "enabled": False}
    services = daemon.root / "config/services.json"
    services.write_text(json.dumps({"services": [flooder]}))
    daemon.until(lambda: daemon.instance("sidecar/flooder")["state"] == "stopped")

    with following(daemon, "flooder", shown) as cli:
        time.sleep(1)
        services.write_text(json.dumps({"services": [{**flooder, "enabled": True}]}))
        during, peak = [], rss
        deadline = time.monotonic() + 90
        while not mark.exists():
            during.append(ask_status(daemon))
            peak = max(peak, resident_bytes(daemon.process.pid))
            assert time.monotonic() < deadline, "the flood does not end: does its writer block?"
            time.sleep(0.02)
        daemon.until(lambda: b"the second run is calm" in shown.read_bytes(), 60, "the reader sees the next run")
        cli.send_signal(signal.SIGINT)
        assert cli.wait(20) == 130

    log = Path(daemon.instance("sidecar/flooder")["log"])
    files = [path for n in range(KEEP - 1, 0, -1) if (path := log.with_name(f"{log.name}.{n}")).exists()]
    daemon.until(lambda: log.stat().st_size <= LIMIT, what="the log is small again")
    whole = b"".join(path.read_bytes() for path in (*files, log))
    kept = numbers_in(whole)  # of 110 MB the first may be gone, as they should be
    lost, missed = holes(kept, kept[0]), holes(numbers_in(shown.read_bytes()))
    figures = {
        "files": [p.stat().st_size for p in (*files, log)], "lost": lost, "missed": missed, "rss": peak - rss,
        "p99": [round(statistics.quantiles(x, n=100)[98] * 1000, 1) for x in (ordinary, during)],
        "took": mark.read_text().strip(),
    }  # fmt: skip
    print(figures)
    assert len(files) == KEEP - 1
    assert all(path.stat().st_size <= 1.5 * LIMIT + 10 * 2**20 for path in files), figures
    assert sum(path.stat().st_size for path in (*files, log)) <= (KEEP + 1) * LIMIT, figures
    assert peak - rss < 20 * 2**20, figures
    assert statistics.quantiles(during, n=100)[98] < 0.1 + 5 * statistics.quantiles(ordinary, n=100)[98], figures

    assert kept[0] < LINES // 2, figures
    for gaps in (lost, missed) if b"output is missing here" not in shown.read_bytes() else (lost,):
        assert statistics.median(gaps or [0]) <= 10, figures
        assert sum(gaps) * 100 < LINES, figures  # a machine that runs the writer between two calls of ours
    assert b'"forged"' in shown.read_bytes()

    exit_shown = daemon.instance("sidecar/flooder")["last_exit"]
    assert exit_shown["code"] == 3
    assert max(map(len, exit_shown["last_lines"])) <= 500
    assert len(daemon.call("GET", "/api/comfyui/instances/flooder/logs?tail=10000").body) <= 2**20
    assert records(daemon, "forged") == []
    assert b"\x1b" not in (daemon.root / "workspace/logs/comfyd.log").read_bytes()
