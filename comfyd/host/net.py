"""Guarded HTTP for addresses that come from files and users: where it may connect, what it follows, what it sends.

Owns: the address guard, redirects (at most 3, each checked again) and that secrets never reach another origin.
Must not: write files or know what is fetched.
"""

import errno
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
from yarl import URL

from comfyd.errors import ComfydError

MAX_REDIRECTS = 3
PUBLIC_PORTS = frozenset({80, 443, 8080, 8443})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


NOT_PUBLIC = "is not a public address"


class ForbiddenAddress(OSError):
    """The guard refused an address. An OSError, so that aiohttp treats it as a failed connection; several of them
    may come back as one error that only quotes NOT_PUBLIC."""


class UrlRefused(ComfydError):
    """A URL that is not fetched, whatever the server would say."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="download_failed", details={"reason": "url_refused"})


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet; embedded IPv4 addresses count as themselves."""
    try:
        address: _Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    inner = _embedded(address)
    if inner is not None:
        return is_public(str(inner))
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded(address: _Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def check_url(url: URL, *, allow_private: bool) -> None:
    """Raise UrlRefused unless it is http(s) to a host and port that may be asked. Names are checked at connect."""
    if url.scheme not in ("http", "https") or not url.host:
        raise UrlRefused(f"{shown(url)}: only http and https addresses are fetched")
    if allow_private:
        return
    if url.port not in PUBLIC_PORTS:
        raise UrlRefused(f"{shown(url)}: port {url.port} is not one of {sorted(PUBLIC_PORTS)}")
    if _is_number(url.host) and not is_public(url.host):
        raise UrlRefused(f"{shown(url)}: the address is private; COMFYD_ALLOW_PRIVATE_URLS=true permits it")


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_number(host: str) -> bool:
    """A literal in any spelling that some resolver takes for an address (2130706433, 0x7f.1, 127.1, ::1)."""
    return ":" in host or re.fullmatch(r"(?:\d+|0[xX][0-9a-fA-F]*)", host.rstrip(".").rpartition(".")[2]) is not None


def shown(url: URL | str) -> str:
    """A URL without user, password, query and fragment: what may be logged."""
    try:
        url = URL(url)
    except ValueError:
        return "(not a valid URL)"
    return str(url.with_user(None).with_query(None).with_fragment(None)) if url.host else str(url.with_query(None))


def guarded_socket(addr_info: Any) -> socket.socket:
    """The connector's socket factory: the address that was resolved is the one that is checked and connected to."""
    family, kind, proto, _, address = addr_info
    if not is_public(str(address[0])):
        why = f"{address[0]} {NOT_PUBLIC}; COMFYD_ALLOW_PRIVATE_URLS=true permits it"
        raise ForbiddenAddress(errno.EACCES, why)
    return socket.socket(family, kind, proto)


@dataclass(frozen=True, slots=True)
class Request:
    """headers go to every origin, secret_headers only to the origin of `url`."""

    url: URL
    headers: Mapping[str, str] = field(default_factory=dict)
    secret_headers: Mapping[str, str] = field(default_factory=dict)
    connect_timeout_s: float = 30.0
    read_timeout_s: float = 60.0


class Net:
    """Two sessions, made on first use: a guarded one, and one that only ever talks to the configured proxy.

    Loop thread only; close it with `aclose`.
    """

    def __init__(
        self, *, allow_private: bool = False, per_host: int = 2, proxies: Mapping[str, str] | None = None
    ) -> None:
        self.allow_private = allow_private
        self._per_host = per_host
        self._proxies = dict(getproxies_environment() if proxies is None else proxies)
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def aclose(self) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    @asynccontextmanager
    async def get(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer after redirects, its body unread. Raises UrlRefused, aiohttp.ClientError, TimeoutError."""
        url = request.url
        for _ in range(MAX_REDIRECTS + 1):
            check_url(url, allow_private=self.allow_private)
            response = await self._once(request, url)
            location = response.headers.get("Location", "")
            if response.status not in _REDIRECTS or not location:
                try:
                    yield response
                finally:
                    response.close()
                return
            response.close()
            target = url.join(URL(location))
            if url.scheme == "https" and target.scheme != "https":
                raise UrlRefused(f"{shown(request.url)} leads from https to {shown(target)}")
            url = target
        raise UrlRefused(f"{shown(request.url)} leads through more than {MAX_REDIRECTS} redirects")

    async def _once(self, request: Request, url: URL) -> aiohttp.ClientResponse:
        headers = {"Accept-Encoding": "identity", **request.headers}
        if url.origin() == request.url.origin():
            headers.update(request.secret_headers)
            if request.url.user and "Authorization" not in headers:
                headers["Authorization"] = aiohttp.BasicAuth(request.url.user, request.url.password or "").encode()
        proxy = self._proxy(url)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=request.connect_timeout_s, sock_read=request.read_timeout_s
        )
        bare = url.with_user(None)
        return await self._session(proxy is not None).get(
            bare, headers=headers, allow_redirects=False, timeout=timeout, proxy=proxy
        )

    def _proxy(self, url: URL) -> str | None:
        if _is_literal(url.host or "") or url.host == "localhost":
            return None
        proxy = self._proxies.get(url.scheme) or self._proxies.get("all")
        return None if not proxy or proxy_bypass_environment(url.host or "", self._proxies) else proxy

    def _session(self, by_proxy: bool) -> aiohttp.ClientSession:
        if by_proxy not in self._sessions:
            guard = None if by_proxy or self.allow_private else guarded_socket
            connector = aiohttp.TCPConnector(limit_per_host=self._per_host, socket_factory=guard)
            self._sessions[by_proxy] = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._sessions[by_proxy]
