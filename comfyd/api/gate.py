"""Who may come in: known Host names, own Origin, no cross-site triggers.

Without tokens a browser page on another site must not be able to drive the daemon. Public operations are open.
"""

import ipaddress
import socket
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import web

from comfyd.errors import ComfydError
from comfyd.settings import Settings

LEASING_PATHS = ("/comfyui-fetch-task", "/comm/task/fetch")
_SAME = {"same-origin", "none"}


def known_hosts(settings: Settings) -> frozenset[str]:
    """Names a request may be addressed to, lower case and without port (IP literals are judged apart)."""
    given = (name.strip().lower().rstrip(".") for name in settings.allowed_hosts.split(","))
    return frozenset({"localhost", "ip6-localhost", socket.gethostname().lower(), *filter(None, given)})


@lru_cache(maxsize=256)
def host_is_known(host: str, known: frozenset[str]) -> bool:
    """`host` as sent in the Host header. An IP literal cannot be rebound, so it is always known."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        port = urlsplit(f"//{host}").port
    except ValueError:
        return False
    if not name or any(c in host for c in "/?#@\\") or (port is None and host.endswith(":")):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in known
    return True


def check(request: web.Request, known: frozenset[str]) -> None:
    """Raises ComfydError forbidden_host or forbidden_origin."""
    host = request.headers.get("Host", "")
    sock = request.transport.get_extra_info("socket") if request.transport else None
    over_unix = sock is not None and sock.family == socket.AF_UNIX
    if not over_unix and not host_is_known(host, known):
        raise ComfydError(
            f"the Host {host[:100]!r} is not known here; use an IP address or list it in COMFYD_ALLOWED_HOSTS",
            code="forbidden_host",
        )
    origin = request.headers.get("Origin")
    if origin is not None and (origin == "null" or urlsplit(origin).netloc.lower() != host.lower()):
        raise ComfydError(f"requests from pages of {origin[:100]!r} are refused", code="forbidden_origin")
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site not in _SAME and not _harmless_visit(request):
        raise ComfydError(f"a {site[:20]!r} request of a browser is refused", code="forbidden_origin")


def _harmless_visit(request: web.Request) -> bool:
    """A link to a page of ours that somebody follows; nothing on it changes by looking."""
    leases = any(part in request.path for part in LEASING_PATHS)
    return request.method in ("GET", "HEAD") and request.headers.get("Sec-Fetch-Mode") == "navigate" and not leases
