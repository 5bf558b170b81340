"""Real subprocesses: barrier, readiness, stop order, groups, leaving, adoption, crashes."""

import http.server
import json
import os
import signal
import socket
import threading
from pathlib import Path

import anyio
import pytest

from comfyd.control.runs import History
from comfyd.core.plan import plan
from comfyd.core.view import ViewInput, describe
from comfyd.host import clock, proc, procfs, sockets
from comfyd.host.journal import Journal
from comfyd.model.base import Now
from comfyd.model.desired import ProbeSpec
from comfyd.model.observed import Evidence, Phase
from comfyd.model.process import ResolvedState
from tests.control.conftest import alive, end, environment_of, open_bench
from tests.ports import free_port

SLEEP = "import time; time.sleep(600)"
LISTEN = (
    "import socket,time; s=socket.socket(); s.setsockopt(1,2,1);"
    "s.bind(('127.0.0.1',{port})); s.listen(); time.sleep(600)"
)
STUBBORN = "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"


@pytest.mark.asyncio
async def test_a_process_starts_gets_ready_and_stops(root: Path) -> None:
    port = free_port()
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/0", LISTEN.format(port=port), port=port))
        assert bench.seen("comfyui/0").phase is Phase.STARTING
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        pid = bench.seen("comfyui/0").pid
        assert pid is not None
        assert (root / "logs/comfyui_0.pid").read_text() == f"{pid}\n"
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        last = bench.seen("comfyui/0").last_exit
        assert last is not None
        assert last.asked
        assert bench.seen("comfyui/0").crashes == 0
        assert not alive(pid)
        assert not (root / "logs/comfyui_0.pid").exists()


@pytest.mark.asyncio
async def test_a_port_that_somebody_else_answers_on_is_not_ready(root: Path) -> None:
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        port = foreign.getsockname()[1]
        async with open_bench(root) as bench:
            await bench.start(bench.wish("comfyui/0", SLEEP, port=port))
            await bench.until(lambda: "not open" in bench.seen("comfyui/0").probe_message)
            assert bench.seen("comfyui/0").phase is Phase.STARTING
            bench.stop("comfyui/0")
            await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)


@pytest.mark.asyncio
async def test_a_stranger_that_answers_200_in_our_place_is_not_ready_and_is_not_even_asked(root: Path) -> None:
    """It took the port after our process was started."""
    asked: list[str] = []

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as foreign:
        threading.Thread(target=foreign.serve_forever, args=(0.05,), daemon=True).start()
        try:
            async with open_bench(root) as bench:
                wish = bench.wish("comfyui/0", SLEEP, port=foreign.server_port)
                probe = ProbeSpec(type="http", path="/prompt", period_s=0.1)
                await bench.start(wish.model_copy(update={"spec": wish.spec.model_copy(update={"probe": probe})}))
                await bench.until(lambda: "not open" in bench.seen("comfyui/0").probe_message)
                assert bench.seen("comfyui/0").phase is Phase.STARTING
                bench.stop("comfyui/0")
                await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        finally:
            foreign.shutdown()
    assert asked == []


@pytest.mark.asyncio
async def test_stop_signals_first_sigint_then_term_then_kills_the_whole_group(root: Path) -> None:
    code = f"""
import os, signal, subprocess, sys, time
for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, lambda n, f: print('got', n, flush=True))
child = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])
escaped = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)
print('pids', child.pid, escaped.pid, flush=True)
while True: time.sleep(1)
"""
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/0", code, grace=0.6))
        log = root / "logs/comfyui_0.log"
        await bench.until(lambda: "pids" in log.read_text())
        child, escaped = (int(p) for p in log.read_text().split("pids")[1].split()[:2])
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        assert log.read_text().split("got")[1:3] == [" 2\n", " 15\n"]
        assert not alive(child)
        assert not alive(escaped)
        assert bench.seen("comfyui/0").last_exit is not None
        assert bench.seen("comfyui/0").last_exit.signal == "SIGKILL"  # type: ignore[union-attr]


@pytest.mark.asyncio
async def test_a_crash_is_counted_with_exit_code_and_last_lines_and_its_leftovers_are_ended(root: Path) -> None:
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}])
print('child', child.pid, flush=True); print('the reason'); sys.exit(7)
"""
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/0", code))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        seen = bench.seen("comfyui/0")
        assert seen.last_exit is not None
        assert (seen.last_exit.code, seen.last_exit.asked, seen.crashes) == (7, False, 1)
        assert seen.last_exit.last_lines[-1] == "the reason"
        assert not alive(int(seen.last_exit.last_lines[0].split()[1]))
        await bench.start(bench.wish("comfyui/0", code))
        await bench.until(lambda: bench.seen("comfyui/0").crashes == 2)
        assert bench.seen("comfyui/0").restarts == 1


@pytest.mark.asyncio
async def test_leftovers_are_found_wherever_they_went_and_siblings_are_left_alone(root: Path) -> None:
    code = f"""
import os, subprocess, sys
group = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], process_group=0)
session = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    orphan = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)
    os.write(write, str(orphan.pid).encode())
    os._exit(0)
print('pids', group.pid, session.pid, os.read(read, 20).decode(), flush=True); os.abort()
"""
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/1", SLEEP))
        await bench.start(bench.wish("comfyui/0", code))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        last = bench.seen("comfyui/0").last_exit
        assert last is not None
        pids = [int(word) for line in last.last_lines if line.startswith("pids") for word in line.split()[1:]]
        assert len(pids) == 3
        assert not [pid for pid in pids if alive(pid)]
        sibling = bench.seen("comfyui/1").pid
        assert sibling is not None
        assert alive(sibling)
        bench.stop("comfyui/1")
        await bench.until(lambda: bench.seen("comfyui/1").phase is Phase.GONE)


def test_listening_sockets_are_the_same_from_the_kernel_and_from_the_tables() -> None:
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        for one, address in ((four, "127.0.0.1"), (six, "::1")):
            one.bind((address, 0))
            one.listen()
        for found in (sockets._diagnosed(), sockets._tabled(), sockets.listening()):
            for one in (four, six):
                assert found[one.getsockname()[1]] == {os.fstat(one.fileno()).st_ino}


@pytest.mark.asyncio
async def test_a_start_that_the_system_refuses_is_a_fact(root: Path) -> None:
    async with open_bench(root) as bench:
        wish = bench.wish("comfyui/0", SLEEP)
        missing = wish.model_copy(update={"spec": wish.spec.model_copy(update={"argv": (str(root / "nothing"),)})})
        await bench.start(missing)
        seen = bench.seen("comfyui/0")
        assert seen.phase is Phase.GONE
        assert seen.crashes == 1
        assert seen.last_exit is not None
        assert "program does not exist" in seen.last_exit.text()


@pytest.mark.asyncio
async def test_never_ready_ends_at_the_startup_deadline(root: Path) -> None:
    async with open_bench(root) as bench:
        wish = bench.wish("comfyui/0", SLEEP, port=free_port())
        probe = wish.spec.probe.model_copy(update={"startup_deadline_s": 0.3})
        await bench.start(wish.model_copy(update={"spec": wish.spec.model_copy(update={"probe": probe})}))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        last = bench.seen("comfyui/0").last_exit
        assert last is not None
        assert "not ready within 0.3 s" in last.text()
        assert not last.asked


@pytest.mark.asyncio
async def test_children_carry_our_uuid_and_no_secret_of_the_daemon(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYD_TOKEN", "hush")
    monkeypatch.setenv("MY_DB", "postgresql://u:p@h/db")
    monkeypatch.setenv("KEPT", "yes")
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/0", "print('up', flush=True);" + SLEEP))
        log = root / "logs/comfyui_0.log"
        await bench.until(lambda: "up" in log.read_text())
        seen = bench.seen("comfyui/0")
        environment = environment_of(seen.pid or 0)
        assert environment["COMFYD_PROCESS_UUID"] == seen.generation
        assert environment["KEPT"] == "yes"
        assert "COMFYD_TOKEN" not in environment
        assert "MY_DB" not in environment
        fds = {os.readlink(f"/proc/{seen.pid}/fd/{n}") for n in os.listdir(f"/proc/{seen.pid}/fd")}
        assert fds == {"/dev/null", str(log)}
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)


@pytest.mark.asyncio
async def test_leaving_keeps_the_process_and_the_next_supervisor_adopts_it_ready(root: Path) -> None:
    port = free_port()
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/0", LISTEN.format(port=port), port=port))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        before = bench.seen("comfyui/0")
    assert alive(before.pid or 0)
    async with open_bench(root) as bench:
        after = bench.seen("comfyui/0")
        assert (after.pid, after.generation, after.phase) == (before.pid, before.generation, Phase.READY)
        assert after.adopted
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        assert not alive(before.pid or 0)


@pytest.mark.asyncio
async def test_restarts_are_counted_on_by_the_next_supervisor(root: Path) -> None:
    async with open_bench(root) as bench:
        wish = bench.wish("comfyui/0", SLEEP)
        await bench.start(wish)
        end(bench.seen("comfyui/0").pid or 0)
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        await bench.start(wish)
        assert bench.seen("comfyui/0").restarts == 1
    async with open_bench(root) as bench:
        assert (bench.seen("comfyui/0").adopted, bench.seen("comfyui/0").restarts) == (True, 1)
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)


@pytest.mark.asyncio
async def test_what_died_unseen_is_a_crash_and_its_orphans_are_ended(root: Path) -> None:
    child = f"subprocess.Popen([sys.executable,'-c',{SLEEP!r}])"
    code = f"import subprocess,sys,time; p={child}; print(p.pid,flush=True); time.sleep(600)"
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/0", code))
        log = root / "logs/comfyui_0.log"
        await bench.until(lambda: log.read_text().strip().isdigit())
        pid = bench.seen("comfyui/0").pid or 0
    orphan = int(log.read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert alive(orphan)
    async with open_bench(root) as bench:
        seen = bench.seen("comfyui/0")
        assert seen.phase is Phase.GONE
        assert seen.crashes == 1
        assert seen.last_exit is not None
        assert "no daemon was watching" in seen.last_exit.text()
        await bench.until(lambda: not alive(orphan))


@pytest.mark.asyncio
async def test_a_recycled_pid_is_never_signalled(root: Path) -> None:
    """A record whose pid belongs to somebody else now (other start time, other uuid) is dropped."""
    decoy = os.spawnv(os.P_NOWAIT, "/bin/sleep", ["sleep", "600"])
    try:
        async with open_bench(root) as bench:
            await bench.start(bench.wish("comfyui/0", SLEEP))
            run = bench.seen("comfyui/0")
        end(run.pid or 0)
        os.waitpid(run.pid or 0, 0)
        journal = root / "workspace/.comfyd/run.journal"
        journal.write_text(journal.read_text().replace(f'"pid":{run.pid},', f'"pid":{decoy},'))
        async with open_bench(root) as bench:
            assert bench.seen("comfyui/0").phase is Phase.GONE
        assert alive(decoy)
    finally:
        end(decoy)
        os.waitpid(decoy, 0)


def test_the_barrier_ends_without_its_daemon(tmp_path: Path) -> None:
    """EOF instead of `go`: nothing was executed."""
    mark = tmp_path / "mark"
    request = proc.SpawnRequest(("/bin/touch", str(mark)), str(tmp_path), {}, str(tmp_path / "log"), "u")
    process = proc.spawn(request, clock.boot_id(), procfs.pid_namespace())
    assert process.barrier is not None
    os.close(process.barrier)
    process.barrier = None
    assert process.status().code == proc.NOT_RELEASED_EXIT
    assert not mark.exists()
    process.close()


def test_a_torn_last_line_of_the_journal_is_ignored(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run.journal")
    assert journal.open() == []
    journal.started([{"uuid": "a", "key": "x"}, {"uuid": "b", "key": "y"}])
    journal.marked("a", ready=True)
    journal.ended("b")
    journal.close()
    whole = (tmp_path / "run.journal").read_bytes()
    (tmp_path / "run.journal").write_bytes(whole + b'{"op":"start","uuid":"c","ke')
    assert Journal(tmp_path / "run.journal").open() == [{"uuid": "a", "key": "x", "ready": True}]


def test_arguments_reach_the_program_as_written(tmp_path: Path) -> None:
    """Nothing is ever given to a shell."""
    evil = ("$(touch pwned)", "`id`", "a b", "'\"", ";ls", "-x")
    request = proc.SpawnRequest(("/usr/bin/printf", "%s\n", *evil), str(tmp_path), {}, str(tmp_path / "log"), "u")
    process = proc.spawn(request, clock.boot_id(), procfs.pid_namespace())
    proc.release(process)
    assert process.status().code == 0
    assert (tmp_path / "log").read_text().splitlines() == list(evil)
    assert not (tmp_path / "pwned").exists()
    process.close()


@pytest.mark.asyncio
async def test_a_probe_that_is_switched_on_or_off_counts_without_a_restart(root: Path) -> None:
    async with open_bench(root) as bench:
        silent = bench.wish("comfyui/0", SLEEP, port=free_port())
        spec = silent.spec
        off = silent.model_copy(update={"spec": spec.model_copy(update={"probe": ProbeSpec(type="none")})})
        await bench.start(off)
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        pid = bench.seen("comfyui/0").pid
        bench.supervisor.refresh(ResolvedState(processes=(silent,)))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.UNREADY)
        bench.supervisor.refresh(ResolvedState(processes=(off,)))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        assert bench.seen("comfyui/0").pid == pid
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_who_casts_off_session_parent_and_environment_is_ended_with_its_own_run_only(
    root: Path, how: str
) -> None:
    """Two runs of the same program: what it let loose cannot be told apart by session, parent, uuid or log."""
    code = f"""
import os, subprocess, sys, time
if (child := os.fork()) == 0:
    os.setsid()
    quiet = dict(stdin=-3, stdout=-3, stderr=-3)
    loose = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], env={{}}, cwd='/', start_new_session=True, **quiet)
    print('loose', loose.pid, flush=True)
    os._exit(0)
os.waitpid(child, 0)
time.sleep(600)
"""
    async with open_bench(root) as bench:
        await bench.start(*(bench.wish(key, code, grace=0.4) for key in ("comfyui/0", "comfyui/1")))
        logs = [root / f"logs/comfyui_{n}.log" for n in range(2)]
        await bench.until(lambda: all("loose" in log.read_text() for log in logs))
        loose = [int(log.read_text().split()[1]) for log in logs]
        try:
            assert environment_of(loose[0]) == {}
            if how == "stop":
                bench.stop("comfyui/0")
            else:
                os.kill(bench.seen("comfyui/0").pid or 0, signal.SIGKILL)
            await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
            assert [alive(pid) for pid in loose] == [False, True]
            bench.stop("comfyui/1")
            await bench.until(lambda: bench.seen("comfyui/1").phase is Phase.GONE)
            assert not alive(loose[1])
        finally:
            for pid in filter(alive, loose):
                end(pid)


@pytest.mark.asyncio
async def test_a_process_with_our_tag_but_no_record_is_shown_and_left_alone(root: Path) -> None:
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/0", SLEEP))
        owner = environment_of(bench.seen("comfyui/0").pid or 0)[procfs.OWNER_VARIABLE]
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
    tags = {procfs.OWNER_VARIABLE: owner, procfs.UUID_VARIABLE: "f" * 32}
    stranger = os.spawnve(os.P_NOWAIT, "/bin/sleep", ["sleep", "600"], tags)
    try:
        while environment_of(stranger).get(procfs.UUID_VARIABLE) != "f" * 32:  # until it is what it is to be
            await anyio.sleep(0.01)
        async with open_bench(root) as bench:
            assert bench.state().unrecorded == (stranger,)
            now = Now(clock.mono(), clock.wall())
            status = describe(
                ViewInput(ResolvedState(), bench.state(), plan(ResolvedState(), bench.state(), now), now, "")
            )
            assert status.unrecorded == (stranger,)
            await bench.start(bench.wish("comfyui/0", SLEEP))
            bench.stop("comfyui/0")
            await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        assert alive(stranger)
    finally:
        end(stranger)
        os.waitpid(stranger, 0)


CLOSABLE = """
import signal, socket, time
s = socket.create_server(('127.0.0.1', {port}), backlog=1000)
signal.signal(signal.SIGUSR1, lambda *_: s.close())
while True: time.sleep(1)
"""


@pytest.mark.asyncio
async def test_one_that_was_ready_once_is_adopted_unready_and_no_startup_deadline_ends_it(root: Path) -> None:
    """It may be busy with a long prompt just when a daemon takes over."""
    port = free_port()
    async with open_bench(root) as bench:
        wish = bench.wish("comfyui/0", CLOSABLE.format(port=port), port=port)
        probe = wish.spec.probe.model_copy(update={"startup_deadline_s": 5.0})
        await bench.start(wish.model_copy(update={"spec": wish.spec.model_copy(update={"probe": probe})}))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        pid = bench.seen("comfyui/0").pid or 0
        os.kill(pid, signal.SIGUSR1)
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.UNREADY)
    journal = root / "workspace/.comfyd/run.journal"
    text = journal.read_text()
    mono = json.loads(text.splitlines()[0])["mono"]
    older = text.replace(f'"mono":{mono}', f'"mono":{mono - 1000}')
    assert older != text
    journal.write_text(older)
    async with open_bench(root) as bench:
        assert bench.seen("comfyui/0").phase is Phase.UNREADY
        await bench.until(lambda: "not open" in bench.seen("comfyui/0").probe_message)
        await anyio.sleep(0.3)  # some more probes, any of which would have ended it
        assert (bench.seen("comfyui/0").pid, bench.seen("comfyui/0").phase) == (pid, Phase.UNREADY)
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)


@pytest.mark.asyncio
async def test_a_port_that_is_closed_for_long_ends_it_with_the_reason(root: Path) -> None:
    port = free_port()
    async with open_bench(root) as bench:
        # It ignores what asks it to end, so that it can be seen while it ends.
        stubborn = "import signal\nfor one in (signal.SIGINT, signal.SIGTERM): signal.signal(one, signal.SIG_IGN)\n"
        wish = bench.wish("comfyui/0", stubborn + CLOSABLE.format(port=port), port=port, grace=0.5)
        probe = wish.spec.probe.model_copy(update={"liveness_period_s": 0.1, "liveness_failures": 4})
        await bench.start(wish.model_copy(update={"spec": wish.spec.model_copy(update={"probe": probe})}))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        (run,) = bench.supervisor._runs.values()
        assert run.ready_since_mono is not None
        run.ready_since_mono -= 3600  # ready for an hour: what was before that counts no more
        bench.supervisor._history["comfyui/0"] = History(crashes=5, restarts=5)
        os.kill(bench.seen("comfyui/0").pid or 0, signal.SIGUSR1)
        await bench.until(lambda: bench.seen("comfyui/0").trouble is not None)
        trouble = bench.seen("comfyui/0").trouble
        assert trouble is not None
        assert (trouble.type, trouble.reason, trouble.since is not None) == ("unhealthy", "unresponsive", True)
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        seen = bench.seen("comfyui/0")
        assert seen.last_exit is not None
        assert (seen.last_exit.reason, seen.last_exit.asked, seen.crashes) == ("unresponsive", False, 1)


@pytest.mark.asyncio
async def test_a_condemned_run_is_ended_at_once_also_where_nothing_is_probed(root: Path) -> None:
    async with open_bench(root) as bench:
        wish = bench.wish("comfyui/0", SLEEP)
        await bench.start(wish)
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        generation = bench.seen("comfyui/0").generation
        errors = Evidence(key="comfyui/0", generation=generation, device_errors=3, device_message="CUDA error: x")
        for other, kept in ((errors.model_copy(update={"generation": "another run"}), True), (errors, False)):
            bench.live.evidence.set({"comfyui/0": other})
            bench.supervisor.refresh(ResolvedState(processes=(wish,)))
            if kept:
                await anyio.sleep(0.1)  # in which it would have been ended
                assert bench.seen("comfyui/0").phase is Phase.READY
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
        last = bench.seen("comfyui/0").last_exit
        assert last is not None
        assert (last.reason, last.text()) == ("device_errors", "3 device errors in a row: CUDA error: x")


@pytest.mark.asyncio
async def test_one_that_drains_is_adopted_ready_and_not_as_one_that_hangs(root: Path) -> None:
    port = free_port()
    async with open_bench(root) as bench:
        await bench.start(bench.wish("comfyui/0", CLOSABLE.format(port=port), port=port))
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.READY)
        generation = bench.seen("comfyui/0").generation
        bench.live.evidence.set({"comfyui/0": Evidence(key="comfyui/0", generation=generation, in_flight=1)})
        bench.stop("comfyui/0", drain_s=600)
        assert bench.seen("comfyui/0").phase is Phase.DRAINING
    async with open_bench(root) as bench:
        assert (bench.seen("comfyui/0").generation, bench.seen("comfyui/0").phase) == (generation, Phase.READY)
        bench.stop("comfyui/0")
        await bench.until(lambda: bench.seen("comfyui/0").phase is Phase.GONE)
