"""Processes: spawn behind a barrier, identity, signals, exits. The only file that signals, and only through identity.

Rules 1, 2 and 4 of the fault catalogue: a child execs only after its identity is on disk; a process is ours only if
pid, start time, boot id, pid namespace and the random uuid in its environment all agree, checked after pidfd_open.
"""

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from comfyd.host import children
from comfyd.host.procfs import Member, Stat, mark, read_stat, uuid_of

NOT_RELEASED_EXIT = 125
_REFUSED = (errno.ENOSYS, errno.EPERM)
"""What a kernel without pidfds, or a sandbox that forbids them, answers."""
_BARRIER = 'read -r go && [ "$go" = go ] || exit 125; exec "$@" </dev/null'
"""The one shell in the house. Constant: values reach it only as argv. EOF on the pipe (the daemon died) ends it."""


class SpawnError(OSError):
    """A start that the system refused; errno and strerror say why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is. starttime: clock ticks since boot (proc(5) stat field 22). pidns: its pid namespace (inode)."""

    pid: int
    starttime: int
    boot_id: str
    pidns: int
    uuid: str

    def as_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """argv and cwd are absolute and final; env is the whole environment; output is appended to `log`."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    log: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Status:
    """How a process ended. Both None: it was not our child, so nobody told us."""

    code: int | None = None
    signal: str | None = None


@dataclass(slots=True)
class Process:
    """A live process that is ours. pidfd is None where the kernel refuses pidfds (identity is then weak)."""

    identity: Identity
    pidfd: int | None
    barrier: int | None = None

    @property
    def pid(self) -> int:
        return self.identity.pid

    def send(self, number: int) -> bool:
        """Signal the leader; False if it is gone."""
        try:
            _send(self.pidfd, number, self.identity)
        except ProcessLookupError:
            return False
        return True

    def status(self) -> Status:
        """Reap it (if it is our child) and say how it ended. Call only after its pidfd became readable."""
        try:
            result = children.bury(self.identity.pid)
        except ChildProcessError:
            return Status()
        if result.si_code == os.CLD_EXITED:
            return Status(code=result.si_status)
        return Status(signal=signal.Signals(result.si_status).name)

    def close(self) -> None:
        for fd in (self.pidfd, self.barrier):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.pidfd = self.barrier = None


def handed_down(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child may get of the daemon's environment: neither COMFYD_* nor database URLs."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("COMFYD_") and not value.startswith(("postgres://", "postgresql://"))
    }


def child_environment(base: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """`base` (see handed_down) with `changes` (None removes)."""
    kept = dict(base)
    for name, change in changes.items():
        if change is None:
            kept.pop(name, None)
        else:
            kept[name] = change
    return kept


def preflight(request: SpawnRequest) -> None:
    """Raise SpawnError for what the barrier's exec could only report through its log."""
    if not request.argv:
        raise SpawnError(errno.EINVAL, "no command is given", request.cwd)
    program = request.argv[0]
    if not os.path.isdir(request.cwd):
        raise SpawnError(errno.ENOENT, "working folder does not exist", request.cwd)
    if os.sep in program:
        path = os.path.join(request.cwd, program)
        if not os.path.exists(path):
            raise SpawnError(errno.ENOENT, "program does not exist", path)
        if not os.access(path, os.X_OK) or os.path.isdir(path):
            raise SpawnError(errno.EACCES, "program cannot be executed", path)


def spawn(request: SpawnRequest, boot_id: str, pidns: int) -> Process:
    """Start the barrier in its own session; it execs argv once `release` is called. Raises SpawnError.

    Blocking (about 1 ms): call it off the loop.
    """
    preflight(request)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    log = -1
    try:
        log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with children.birth() as awaited:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _BARRIER, "comfyd-spawn", *request.argv],
                stdin=reader, stdout=log, stderr=log, cwd=request.cwd, env=dict(request.env), start_new_session=True,
            )  # fmt: skip
            awaited.add(child.pid)
    except (OSError, ValueError) as error:
        os.close(writer)
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpawnError(number, reason or str(error), request.argv[0]) from error
    finally:
        os.close(reader)
        if log >= 0:
            os.close(log)
    mark(child.pid, request.uuid)
    starttime = read_stat(child.pid)
    identity = Identity(child.pid, starttime.starttime if starttime else 0, boot_id, pidns, request.uuid)
    child.returncode = 0  # from here on the pidfd is the handle: Popen must neither wait for it nor reap it
    return Process(identity, _pidfd(child.pid), writer)


def release(process: Process) -> None:
    """Let the child behind the barrier exec."""
    if process.barrier is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(process.barrier, b"go\n")
        os.close(process.barrier)
        process.barrier = None


def abandon(process: Process) -> None:
    """End and reap a child that was never released. Blocking, for the moment that the shell takes to exit."""
    if process.barrier is not None:
        os.close(process.barrier)
        process.barrier = None
        process.status()
    process.close()


def adopt(identity: Identity, boot_id: str, pidns: int) -> Process | None:
    """A handle on a recorded process if it still is that process, else None. Signals nothing."""
    if identity.boot_id != boot_id or identity.pidns != pidns:
        return None
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    except OSError:
        pidfd = -1
    with children.birth() as awaited:
        ours = still(identity)
        if ours:
            awaited.add(identity.pid)
    if not ours:
        if pidfd >= 0:
            os.close(pidfd)
        _bury(identity)
        return None
    return Process(identity, pidfd if pidfd >= 0 else None)


def _bury(identity: Identity) -> None:
    """After an upgrade in place it may be a child of ours that ended meanwhile: nobody else would reap it."""
    stat = read_stat(identity.pid)
    if stat and stat.state == "Z" and stat.ppid == os.getpid() and stat.starttime == identity.starttime:
        os.waitid(os.P_PID, identity.pid, os.WEXITED | os.WNOHANG)


def still(identity: Identity) -> bool:
    """Whether the pid carries the recorded start time and uuid and is no zombie."""
    stat = read_stat(identity.pid)
    if stat is None or stat.starttime != identity.starttime or stat.state in "ZX":
        return False
    return uuid_of(identity.pid) == identity.uuid


def has_ended(named: Identity | Stat) -> bool:
    """Whether nothing runs under its pid and start time any more. Unlike `still` it never errs during an exec."""
    stat = read_stat(named.pid)
    return stat is None or stat.starttime != named.starttime or stat.state in "ZX"


def _send(pidfd: int | None, number: int, named: Identity | Stat) -> None:
    """Through the pidfd; where that is refused by pid, checked right before. Raises ProcessLookupError if gone."""
    try:
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, number)
            return
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    if has_ended(named):
        raise ProcessLookupError(errno.ESRCH, "ended", str(named.pid))
    os.kill(named.pid, number)


def signal_member(member: Member, number: int) -> None:
    """Signal one scanned process if it still is the same one."""
    fd = _pidfd(member.stat.pid)
    try:
        stat = read_stat(member.stat.pid)
        if stat is None or stat.starttime != member.stat.starttime:
            return
        with contextlib.suppress(ProcessLookupError):
            _send(fd, number, member.stat)
    finally:
        if fd is not None:
            os.close(fd)


def group_is_empty(leader: int) -> bool:
    """Whether no process (zombies count) is left in the group of a reaped leader. Cheap; sends nothing."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
