"""The `@op` layer: one declaration per route gives scope, validation, error shape and OpenAPI.

Owns: how a request becomes validated data and an answer becomes JSON. Must not: know any family of routes.
Scopes are declared here and enforced by the gate once tokens exist.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from comfyd.api.context import CONTEXT, ApiContext
from comfyd.api.strictjson import decode
from comfyd.errors import ComfydError

BODY_DEADLINE_S = 30.0
THREAD_FROM_BYTES = 128 * 1024
SHOWN_ERRORS = 20

Scope = Literal["admin", "client", "worker", "public"]
B = TypeVar("B")
Q = TypeVar("Q")


@dataclass(frozen=True, slots=True)
class Call(Generic[B, Q]):
    """One validated request. body and query are of the declared models, None where none is declared or sent."""

    context: ApiContext
    request: web.Request
    body: B
    query: Q

    def path(self, name: str) -> str:
        """A path parameter, percent-decoded."""
        return self.request.match_info[name]

    @property
    def caller(self) -> str:
        """Who asks, for leases and overrides: the peer address, `unix` for the socket."""
        return self.request.remote or "unix"


Handler = Callable[[Call[Any, Any]], Awaitable[BaseModel | web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route as declared. `also`: further paths of the same operation. media: content type of the answer."""

    method: str
    path: str
    handler: Handler
    scope: Scope
    response: type[BaseModel] | None
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    status: int = 200
    errors: tuple[int, ...] = ()
    also: tuple[str, ...] = ()
    body_required: bool = True
    media: str = "application/json"
    decode: Callable[[bytes], Any] = field(default=decode)

    @property
    def name(self) -> str:
        return getattr(self.handler, "__name__", "operation")

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.also)


def op(
    method: str, path: str, *, scope: Scope, response: type[BaseModel] | None, **declared: Any
) -> Callable[[Handler], Handler]:
    """Declare a route; `declared` are the other fields of Operation. The handler takes a Call."""

    def declare(handler: Handler) -> Handler:
        handler.operation = Operation(  # type: ignore[attr-defined]
            method=method, path=path, handler=handler, scope=scope, response=response, **declared
        )
        return handler

    return declare


def under_api(path: str) -> tuple[str, ...]:
    """The second address of a task, workflow or environment route."""
    return (path.removeprefix("/api") if path.startswith("/api/") else f"/api{path}",)


def operations(families: Iterable[ModuleType]) -> list[Operation]:
    """Every operation that the modules declare, in their order."""
    found = (getattr(value, "operation", None) for family in families for value in vars(family).values())
    return list(dict.fromkeys(one for one in found if isinstance(one, Operation)))


def register(app: web.Application, operation: Operation) -> None:
    """Add the routes of one operation."""

    async def endpoint(request: web.Request) -> web.StreamResponse:
        query = parse_query(request, operation.query) if operation.query else None
        body = await _body(request, operation)
        context = request.config_dict[CONTEXT]
        answer = await operation.handler(Call(context=context, request=request, body=body, query=query))
        return answer if isinstance(answer, web.StreamResponse) else reply(answer, operation.status)

    endpoint.operation = operation  # type: ignore[attr-defined]
    for path in operation.paths:
        app.router.add_route(operation.method, path, endpoint, expect_handler=_expect)
        if operation.method == "GET" and operation.scope == "public":
            app.router.add_route("HEAD", path, endpoint)


def declared_for(request: web.Request) -> Operation | None:
    """The operation a request resolved to, None for an unknown path or method."""
    found = getattr(request.match_info.handler, "operation", None)
    return found if isinstance(found, Operation) else None


def reply(answer: BaseModel, status: int = 200, *, only_set: bool = False) -> web.Response:
    """A model as JSON. only_set leaves out what was not given."""
    text = answer.model_dump_json(exclude_unset=only_set)
    return web.Response(text=text, status=status, content_type="application/json")


async def _expect(request: web.Request) -> None:
    """Invite the body only if it may come; the handler refuses the others by their Content-Length."""
    if (request.content_length or 0) <= max_body(request) and request.transport is not None:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


def max_body(request: web.Request) -> int:
    return int(request.config_dict[CONTEXT].settings.max_body_mb * 1024 * 1024)


async def _body(request: web.Request, operation: Operation) -> Any:
    """The validated body; None if none is declared or an optional one is empty."""
    if operation.body is None and not request.can_read_body:
        return None
    data = await _read(request)
    if not data.strip():
        if operation.body is not None and operation.body_required:
            raise ComfydError("a JSON body is required", code="bad_request")
        return None
    _check_type(request)
    if operation.body is None:
        return None
    loads = operation.decode
    value = await asyncio.to_thread(loads, data) if len(data) > THREAD_FROM_BYTES else loads(data)
    return validated(operation.body, value)


def _check_type(request: web.Request) -> None:
    kind = request.content_type
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ComfydError(
            "send the body as JSON with the header `Content-Type: application/json`", code="unsupported_media_type"
        )
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ComfydError("compressed bodies are not accepted", code="unsupported_media_type")


async def _read(request: web.Request) -> bytes:
    limit = max_body(request)
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    if request.content.is_eof():  # the whole of it came with the head
        whole = request.content.read_nowait()
        if len(whole) > limit:
            raise _too_large(limit)
        return whole
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise ComfydError(
            f"the body did not arrive within {BODY_DEADLINE_S:g} s", code="request_timeout", retryable=True
        ) from None
    return bytes(data)


def _too_large(limit: int) -> ComfydError:
    return ComfydError(
        f"the body is larger than {limit} bytes (COMFYD_MAX_BODY_MB)",
        code="payload_too_large",
        details={"limit_bytes": limit},
    )


def validated(model: type[BaseModel], value: Any) -> BaseModel:
    """`value` as `model`. Raises ComfydError `validation_failed` that lists what is wrong and where."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [
            {"path": "".join(f"/{part}" for part in e["loc"]), "message": e["msg"].removeprefix("Value error, ")}
            for e in error.errors(include_url=False, include_context=False, include_input=False)[:SHOWN_ERRORS]
        ]
        first = problems[0]
        message = f"{first['path'] or 'the request'}: {first['message']}"
        more = error.error_count() - 1
        raise ComfydError(
            message + (f" (and {more} more)" if more else ""), code="validation_failed", details={"errors": problems}
        ) from None


def parse_query(request: web.Request, model: type[BaseModel]) -> BaseModel:
    """The query string as `model`; a key given twice is a 400."""
    given = request.query
    for name in set(given):
        if len(given.getall(name)) > 1:
            raise ComfydError(f"the query parameter {name[:100]!r} is given twice", code="bad_request")
        if "\0" in given[name]:
            raise ComfydError(f"the query parameter {name[:100]!r} holds a NUL character", code="bad_request")
    return validated(model, dict(given))
