"""Ports for tests: no two calls, in whatever test process of this machine, are given the same one."""

import itertools
import os
import socket
from pathlib import Path

_FIRST = 10_000
_held: list[socket.socket] = []


def _candidates() -> "itertools.cycle[int]":
    """Below the range that the kernel gives to outgoing connections, each process from a place of its own."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(_FIRST, low if low > _FIRST + 1000 else 32_768)
    start = os.getpid() * 131 % len(ports)
    return itertools.cycle([*ports[start:], *ports[:start]])


_ports = _candidates()


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on.

    It is claimed by a UDP socket on the same number, which is held until this process ends: a test may use the port
    much later, and neither an ephemeral port nor another test must have taken it by then.
    """
    for port in _ports:
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _held.append(claim)
        return port
    raise AssertionError("no free port")
