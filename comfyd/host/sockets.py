"""Who listens where, from the kernel's socket diagnosis and procfs. Reads only."""

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from comfyd.host.procfs import all_pids, read_stat

_LISTEN = "0A"
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _DUMP = 4, 20, 0x301
_DONE, _FAILED = 3, 2
_TCP_LISTEN = 10
_HEAD = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48x")
_FOUND = struct.Struct("=4x2s62xI")
"""Of struct inet_diag_msg: the port (network order) and the inode."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that listens on a port; pid 0 and name "?" if it cannot be seen."""

    port: int
    pid: int
    name: str


def listening() -> dict[int, set[int]]:
    """Port -> inodes of the TCP sockets that listen on it (any address, IPv4 and IPv6) in this network namespace."""
    try:
        return _diagnosed()
    except OSError:  # not every sandbox has it
        return _tabled()


def _diagnosed() -> dict[int, set[int]]:
    """Ask for listening sockets only: the tables in procfs list every connection, and cost milliseconds for it."""
    found: dict[int, set[int]] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _TCP_LISTEN)
            kernel.send(_HEAD.pack(_HEAD.size + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + request)
            for message in _messages(kernel):
                port, inode = _FOUND.unpack_from(message)
                found.setdefault(int.from_bytes(port, "big"), set()).add(inode)
    return found


def _messages(kernel: socket.socket) -> Iterator[memoryview]:
    """The answers to one dump request. Raises OSError if the kernel refuses it."""
    while True:
        rest = memoryview(kernel.recv(65536))
        while rest:
            length, kind, _, _, _ = _HEAD.unpack_from(rest)
            if kind == _DONE:
                return
            if kind == _FAILED:
                raise OSError(-int.from_bytes(rest[16:20], sys.byteorder, signed=True), "socket diagnosis refused")
            yield rest[_HEAD.size : length]
            rest = rest[(length + 3) & ~3 :]


def _tabled() -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN:
                found.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(int(fields[9]))
    return found


def socket_inodes(pid: int) -> set[int]:
    """Inodes of all sockets that a process has open."""
    found: set[int] = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def session_listens(leader: int, port: int, table: dict[int, set[int]] | None = None) -> bool:
    """Whether a listening socket of `port` belongs to the leader or to a process of its session."""
    inodes = (listening() if table is None else table).get(port, set())
    if not inodes:
        return False
    if inodes & socket_inodes(leader):
        return True
    return any(inodes & socket_inodes(pid) for pid in _session(leader) if pid != leader)


def _session(leader: int) -> Iterable[int]:
    for pid in all_pids():
        stat = read_stat(pid)
        if stat is not None and stat.session == leader:
            yield pid


def holders(ports: Iterable[int], table: dict[int, set[int]]) -> list[Holder]:
    """Who listens on each of `ports`, for those where somebody does. One pass over all processes at most."""
    wanted = {port: table[port] for port in ports if table.get(port)}
    if not wanted:
        return []
    found: dict[int, Holder] = {port: Holder(port, 0, "?") for port in wanted}
    open_ports = dict(wanted)
    for pid in all_pids():
        if not open_ports:
            break
        mine = socket_inodes(pid)
        for port in [p for p, inodes in open_ports.items() if inodes & mine]:
            stat = read_stat(pid)
            found[port] = Holder(port, pid, stat.name if stat else "?")
            del open_ports[port]
    return list(found.values())
