"""One error shape for everything that goes wrong, and the middleware that makes it.

Owns: exception → status, code and body; request ids. Must not: let a traceback or a path of code out.
"""

import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from aiohttp import web

from comfyd.api.context import CONTEXT
from comfyd.api.operation import declared_for
from comfyd.api.wire import ErrorBody, ErrorDetail
from comfyd.errors import HTTP_STATUS, ComfydError
from comfyd.logs import get_logger

log = get_logger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CURRENT: ContextVar[str] = ContextVar("request_id", default="")
RETRY_AFTER_S = {429: 10, 503: 1}
_BY_STATUS = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
}


Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_response(status: int, code: str, message: str, details: Mapping[str, Any] | None = None) -> web.Response:
    """The one error shape as a response."""
    body = ErrorBody(error=ErrorDetail(code=code, message=message, details=dict(details or {})), detail=message)
    return web.Response(status=status, text=body.model_dump_json(), content_type="application/json")


@web.middleware
async def envelope(request: web.Request, handler: Next) -> web.StreamResponse:
    """Give the request an id, count it, and turn every exception into the error shape."""
    given = request.headers.get("X-Request-ID", "")
    first_request = getattr(request.protocol, "first_request", None)
    if first_request is not None:  # a connection that wants to know that one has arrived
        first_request()
    request_id = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"  # no secret
    CURRENT.set(request_id)
    begun = time.monotonic()
    try:
        response = await handler(request)
    except ComfydError as error:
        response = _expected(error)
    except web.HTTPException as error:
        response = _of_library(error)
    except (ConnectionResetError, TimeoutError):
        raise
    except Exception as error:
        log.exception("request failed", request=request_id, method=request.method, error=type(error).__name__)
        text = f"internal error; the log has it as request {request_id}"
        response = error_response(500, "internal", text, {"request_id": request_id})
    _count(request, response.status, time.monotonic() - begun)
    return response


def _expected(error: ComfydError) -> web.Response:
    status = HTTP_STATUS.get(error.code, 500)
    response = error_response(status, error.code, error.message, error.details)
    if status in RETRY_AFTER_S:
        response.headers["Retry-After"] = str(RETRY_AFTER_S[status])
    if status in (408, 413):
        response.force_close()
    return response


def _of_library(error: web.HTTPException) -> web.Response:
    code = _BY_STATUS.get(error.status, "bad_request" if error.status < 500 else "internal")
    text = {
        404: "there is nothing at this address; /docs lists what is",
        405: "this address does not take this method",
    }.get(error.status, error.reason)
    allowed = error.headers.get("Allow")
    response = error_response(error.status, code, text, {"allowed": allowed.split(",")} if allowed else None)
    if allowed:
        response.headers["Allow"] = allowed
    return response


def _count(request: web.Request, status: int, took_s: float) -> None:
    operation = declared_for(request)
    route = operation.path if operation else "other"
    metrics = request.config_dict[CONTEXT].metrics
    metrics.count("http_requests", method=request.method if operation else "other", route=route, status=str(status))
    metrics.count("http_request_seconds", took_s, route=route)


async def set_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every answer, streams included (an on_response_prepare signal)."""
    response.headers["X-Request-ID"] = CURRENT.get() or f"{random.getrandbits(128):032x}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "comfyd"
    response.headers.setdefault("Cache-Control", "no-store")
