"""Who listens where, from procfs. Reads only."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from comfyd.host.proc import all_pids, read_stat

_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that listens on a port; pid 0 and name "?" if it cannot be seen."""

    port: int
    pid: int
    name: str


def listening() -> dict[int, set[int]]:
    """Port -> inodes of the TCP sockets that listen on it (any address, IPv4 and IPv6) in this network namespace."""
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
