"""The composition root: builds the rooms, nests them, shuts them down. Leaving the nest is the shutdown order.

Inside out: stop claiming and drain, end installs, stop or leave the processes, then the API, then the stores.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import anyio

from comfyd import __version__
from comfyd.api.app import serve
from comfyd.api.context import ApiContext
from comfyd.control.loop import Hands
from comfyd.control.open import ControlParts, open_control
from comfyd.dispatch.worker import Dispatcher
from comfyd.environments.runner import Installer
from comfyd.environments.scan import read_config_files, watched_dirs
from comfyd.errors import LockHeldError, SettingsError
from comfyd.host import clock
from comfyd.host.children import Collector, become_subreaper
from comfyd.host.files import exclusive_lock, sweep_temporaries
from comfyd.host.watchdog import Watchdog
from comfyd.live import Live
from comfyd.logs import configure, get_logger
from comfyd.metrics import Metrics
from comfyd.model.base import Now
from comfyd.model.paths import Paths
from comfyd.model.sources import MachineFacts
from comfyd.settings import Settings
from comfyd.signals import HANDLED, hold_signals, let_signals_through
from comfyd.stacks import task_stacks
from comfyd.store.open import Shared, open_stores
from comfyd.store.protocol import NodeStore
from comfyd.wiring import paths_from, variables_from

log = get_logger("comfyd")

EXIT_OK, EXIT_FAILED = 0, 1
TCMALLOC = (
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4",
    "/usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4",
)


def now() -> Now:
    return Now(clock.mono(), clock.wall())


@dataclass(slots=True)
class Signals:
    """TERM, INT: end (a second one skips the drain). HUP: reconcile. USR1: dump state. USR2: upgrade in place.

    upgrade: execute ourselves again; end_after: a TERM or INT came meanwhile, it is for the one that follows.
    """

    live: Live
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    upgrade: bool = False
    end_after: bool = False
    orphans: Collector = field(default_factory=Collector)
    _told: deque[int] = field(default_factory=deque)
    _ears: tuple[socket.socket, socket.socket] = field(init=False)

    def install(self) -> None:
        """Before the first spawn: a child inherits ignored and blocked signals, not handled ones.

        Not by loop.add_signal_handler: closing the loop would take the handlers away while the process still lives.
        The socket only wakes the loop: many deaths at once may fill it, and must not cost the number of another signal.
        """
        self._ears = socket.socketpair()
        for ear in self._ears:
            ear.setblocking(False)
        asyncio.get_running_loop().add_reader(self._ears[0], self._hear)
        signal.set_wakeup_fd(self._ears[1].fileno(), warn_on_full_buffer=False)
        for number in (*HANDLED, signal.SIGCHLD):
            signal.signal(number, self._note)
        let_signals_through()

    def hand_on(self) -> None:
        """After the loop: without a next image nothing matters any more; else it gets what was not heeded."""
        if not self.upgrade:
            for number in HANDLED:
                signal.signal(number, signal.SIG_IGN)
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        hold_signals()
        self._told = deque(number for number in self._told if number != signal.SIGCHLD)
        self._hear()
        if self.end_after:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told.append(number)

    def _hear(self) -> None:
        acts = {signal.SIGHUP: self._reload, signal.SIGUSR1: self._dump, signal.SIGUSR2: self._upgrade}
        with contextlib.suppress(BlockingIOError):
            self._ears[0].recv(65536)
        while self._told:
            number = self._told.popleft()
            if number in (signal.SIGTERM, signal.SIGINT):
                self._end(number)
            elif number in acts:
                acts[signal.Signals(number)]()
            else:
                self.orphans.told()

    def _end(self, number: int) -> None:
        self.end_after = self.upgrade
        if self.ended.is_set():
            self.hurry.set()
        log.info("stopping", signal=signal.Signals(number).name, hurry=self.hurry.is_set())
        self.ended.set()

    def _reload(self) -> None:
        log.info("reloading")
        self.live.wake.set()

    def _dump(self) -> None:
        log.info("state", config=self.live.config.get().state, passes=self.live.passes.get())
        for process in self.live.observed.get().processes:
            log.info("state of process", **process.model_dump(mode="json", exclude={"last_exit"}))
        for key, hold in self.live.plan.get().holds.items():
            log.info("state of hold", key=key, **hold.as_dict())
        for name, stack in task_stacks().items():
            log.info("state of task", name=name, stack=stack)

    def _upgrade(self) -> None:
        if self.ended.is_set():
            return
        log.info("upgrading in place")
        self.upgrade = True
        self.ended.set()


async def run(settings: Settings) -> Signals:
    """Serve until a signal. Returns what the signals said. Raises LockHeldError."""
    paths = paths_from(settings)
    live = Live()
    signals = Signals(live)
    signals.install()
    become_subreaper()
    signals.orphans.told()  # before an upgrade in place some may have died unheard
    _start_threads()
    _make_folders(paths)
    with exclusive_lock(paths.lock, f"the state folder {paths.state_dir}"):
        sweep_temporaries(paths.state_dir)
        log.info("comfyd starts", version=__version__, root=str(paths.root), pid=os.getpid())
        with _watchdog(live).watching():
            await _serve(settings, paths, live, signals)
    log.info("comfyd ends", upgrade=signals.upgrade)
    return signals


def _watchdog(live: Live) -> Watchdog:
    def stalled(seconds: float, stack: list[str]) -> None:
        log.error("event loop blocked", seconds=round(seconds, 1), stack=stack)

    def recovered(seconds: float) -> None:
        log.warning("event loop runs again", seconds=round(seconds, 1))
        live.longest_stall_s.set(max(seconds, live.longest_stall_s.get()))

    return Watchdog(stalled, recovered)


async def _serve(settings: Settings, paths: Paths, live: Live, signals: Signals) -> None:
    leave: Callable[[], bool] = lambda: settings.keep_instances or signals.upgrade  # noqa: E731
    variables = variables_from(settings)
    facts = MachineFacts(paths, _tcmalloc(), clock.container_id())
    shared = _shared_queue(settings, live)
    async with open_stores(
        paths.database, clock.boot_id(), settings.event_log_rows, shared=shared, max_queued=settings.max_queued
    ) as stores:
        if stores.recovered_from is not None:
            await _tell_damage(stores.node, stores.recovered_from)
        context = ApiContext(live, stores.node, stores.tasks, settings, paths, now, Metrics(), facts)
        dispatcher = Dispatcher(live, stores.tasks, settings, paths, now, stores.node.node_id)
        async with serve(context), Installer(live, stores.node, settings, paths) as installer:
            hands = Hands(
                lambda: read_config_files(paths), lambda: watched_dirs(paths), installer.install, installer.refresh
            )
            control = ControlParts(live, stores.node, settings, hands, variables, facts, leave)
            async with open_control(control), dispatcher:
                signals.hurry = dispatcher.hurry
                gc.freeze()  # what start-up made stays: looking through it again and again costs tens of milliseconds
                gc.enable()
                await signals.ended.wait()
                dispatcher.keep_leases = leave()
                live.draining.set(True)


def _shared_queue(settings: Settings, live: Live) -> Shared | None:
    if settings.database_url is None:
        return None
    url = settings.database_url.get_secret_value()
    return Shared(
        url, live.task_wake.set, lambda trouble: live.queue_trouble.set(trouble or ""), live.queue_durability.set
    )


async def _tell_damage(node: NodeStore, moved_to: Path) -> None:
    log.error(
        "store_corrupt", moved_to=str(moved_to), reason="the database was damaged; tasks in it are not in the queue"
    )
    await node.append_event("store", "database", {"to": "recovered", "moved_to": str(moved_to)}, clock.wall())


def _start_threads() -> None:
    """All threads for blocking calls at once: where the system has no room for another one, supervision goes on."""
    count = min(32, (os.cpu_count() or 1) + 4)
    threads, all_run = ThreadPoolExecutor(count, "blocking"), threading.Event()
    try:
        for _ in range(count):
            threads.submit(all_run.wait)
    finally:
        all_run.set()
    asyncio.get_running_loop().set_default_executor(threads)


def _make_folders(paths: Paths) -> None:
    for folder in (paths.workspace, paths.log_dir, paths.data_dir):
        folder.mkdir(parents=True, exist_ok=True)
    paths.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.state_dir.chmod(0o700)


def _tcmalloc() -> str | None:
    return next((path for path in TCMALLOC if Path(path).exists()), None)


def main(settings: Settings) -> int:
    """The daemon as a process. Returns the exit code; raises SettingsError and LockHeldError for the CLI to map."""
    paths = paths_from(settings)
    configure(settings.log_level, settings.log_format, paths.log_dir / "comfyd.log")
    try:
        signals = anyio.run(run, settings)
    except (SettingsError, LockHeldError):
        raise
    except BaseExceptionGroup as group:
        log.exception("comfyd failed", reason=str(group))
        return EXIT_FAILED
    signals.hand_on()
    if signals.upgrade:
        os.execv(sys.executable, [sys.executable, "-m", "comfyd", *sys.argv[1:]])
    return EXIT_OK
