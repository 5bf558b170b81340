"""Sockets of the API: TCP, the unix socket, the connection cap and the deadline for a first request.

Owns: binding and unbinding. Must not: know routes.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

from aiohttp import web

from comfyd.api.errors import error_response
from comfyd.errors import ComfydError
from comfyd.logs import get_logger

log = get_logger(__name__)
BACKLOG = 1024
MAX_CONNECTIONS = 500
FIRST_REQUEST_S = 10.0
KEEPALIVE_S = 75.0
MAX_SOCKET_PATH = 100


class _Refusing(asyncio.Protocol):
    """A connection over the cap: one answer, then closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        body = error_response(503, "not_ready", "too many connections, try again later").body
        data = bytes(body) if isinstance(body, bytes) else b""
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        transport.write(head.encode() + b"Retry-After: 1\r\nConnection: close\r\n\r\n" + data)
        transport.close()


class _Guarded(web.RequestHandler):
    """aiohttp's protocol with a deadline for the first request and our error shape for broken HTTP."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._deadline = asyncio.get_running_loop().call_later(FIRST_REQUEST_S, self._expire)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def first_request(self) -> None:
        """A request arrived in time; keepalive guards the connection from here on."""
        self._deadline.cancel()

    def _expire(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Broken HTTP, or a failure outside of every middleware."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun, it cannot become an error")
        if status >= 500:
            log.error("request failed outside of the application", error=type(exc).__name__, exc_info=exc)
            response = error_response(500, "internal", "internal error; see the log")
        else:
            response = error_response(status, "bad_request", "this is not a valid HTTP request")
        response.force_close()
        return response


class Listeners:
    """The bound sockets. `close` stops accepting at once; open requests are the runner's matter."""

    def __init__(self, server: web.Server, **options: Any) -> None:
        self._server = server
        self._options = options
        self._listening: list[asyncio.AbstractServer] = []
        self._open_dirs: list[int] = []
        self._sockets: list[tuple[int, str]] = []
        self.port = 0

    def _protocol(self) -> asyncio.Protocol:
        if len(self._server.connections) >= MAX_CONNECTIONS:
            return _Refusing()
        return _Guarded(self._server, loop=asyncio.get_running_loop(), **self._options)

    async def tcp(self, host: str, port: int) -> None:
        """Bind host:port. Raises ComfydError that names the port."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._protocol, host, port, backlog=1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = f"port {port} on {host} is used by another program (see it with `lsof -i :{port}`): end that one"
            else:
                why = f"cannot listen on {host}:{port} ({error.strerror})"
            raise ComfydError(
                f"{why}, or set COMFYD_PORT to a free port", code="conflict", details={"port": port}
            ) from error
        _widen(server)
        self._listening.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def unix(self, path: Path) -> None:
        """Bind the socket file, 0600 before anybody can connect. A stale one is replaced."""
        dir_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open_dirs.append(dir_fd)
        short = len(os.fsencode(path)) <= MAX_SOCKET_PATH
        address = str(path) if short else f"/proc/self/fd/{dir_fd}/{path.name}"
        _remove_stale(path, address, dir_fd)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind(address)
            os.chmod(path.name, 0o600, dir_fd=dir_fd)
            server = await asyncio.get_running_loop().create_unix_server(self._protocol, sock=sock, backlog=1)
        except OSError as error:
            sock.close()
            raise ComfydError(f"cannot listen on {path}: {error.strerror}", code="conflict") from error
        _widen(server)
        self._sockets.append((dir_fd, path.name))
        self._listening.append(server)

    def close(self) -> None:
        for server in self._listening:
            server.close()
        for dir_fd, name in self._sockets:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=dir_fd)
        for dir_fd in self._open_dirs:
            os.close(dir_fd)
        self._listening, self._sockets, self._open_dirs = [], [], []


def _widen(server: asyncio.Server) -> None:
    """Let the kernel queue a burst. asyncio must not know: without descriptors it fails `backlog` times in a row."""
    for listening in server.sockets:
        with socket.socket(fileno=os.dup(listening.fileno())) as same:
            same.listen(BACKLOG)


def _remove_stale(path: Path, address: str, dir_fd: int) -> None:
    """Unlink a socket that nobody serves. Raises ComfydError if somebody does, or if it is no socket."""
    try:
        mode = os.stat(path.name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ComfydError(f"{path} is in the way and is not a socket: remove it", code="conflict")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path.name, dir_fd=dir_fd)
            return
        except OSError:
            pass
    raise ComfydError(f"another daemon answers on {path}: stop it first", code="conflict")
