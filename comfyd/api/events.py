"""`GET /events`: the event log as server-sent events. The log is the buffer; a slow reader costs nothing here."""

import contextlib
import re
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, Field

from comfyd.api.operation import Call, op
from comfyd.api.streams import STALLED_READER_S, ended, first_of
from comfyd.api.wire import Answer, Ask
from comfyd.core.shown import rfc3339
from comfyd.errors import ComfydError
from comfyd.model.task import Event

PAGE = 500
PING_S = 15.0


class EventsQuery(Ask):
    after: Annotated[
        int | None, Field(ge=0, le=2**63 - 1, description="last seq already seen; none means only what comes now")
    ] = None


class EventView(Answer):
    """One state change. `seq` is also the id of the server-sent event."""

    seq: int
    at: str
    type: str
    subject: str
    data: dict[str, object]


class Gap(BaseModel):
    """Events `from_seq`..`to_seq` cannot be told: they are not kept any more, or (from 0) the log was begun anew."""

    from_seq: int
    to_seq: int


@op(
    "GET", "/events", scope="client", query=EventsQuery, response=None, media="text/event-stream", also=("/api/events",)
)
async def events(call: Call[None, EventsQuery]) -> web.StreamResponse:
    """Every state change as server-sent events; Last-Event-ID or `after` resumes."""
    from aiohttp_sse import EventSourceResponse

    node = call.context.node
    newest, asked = await node.last_event(), _resume(call)
    last = newest if asked is None else asked
    response = EventSourceResponse(send_timeout=STALLED_READER_S, ping_interval=PING_S)
    await response.prepare(call.request)
    with contextlib.suppress(ConnectionResetError, TimeoutError, ComfydError):
        async with response:
            if last > newest:
                last = newest
                await response.send(Gap(from_seq=0, to_seq=newest).model_dump_json(), id=str(newest), event="gap")
            while not ended(call.request) and response.is_connected():
                page = await node.events(last, PAGE)
                if not page:
                    await first_of(call.request, node.wait_events(last), timeout=PING_S)
                    continue
                if page[0].seq > last + 1:
                    gap = Gap(from_seq=last + 1, to_seq=page[0].seq - 1)
                    await response.send(gap.model_dump_json(), event="gap")
                for event in page:
                    await response.send(_view(event).model_dump_json(), id=str(event.seq), event=event.type)
                last = page[-1].seq
    return response


def _resume(call: Call[None, EventsQuery]) -> int | None:
    """The last event the client has seen; the header of a reconnecting browser wins."""
    given = call.request.headers.get("Last-Event-ID")
    if given is None:
        return call.query.after
    if not re.fullmatch(r"[0-9]{1,18}", given):
        raise ComfydError("Last-Event-ID is the number of an event", code="bad_request")
    return int(given)


def _view(event: Event) -> EventView:
    return EventView(seq=event.seq, at=rfc3339(event.at) or "", type=event.type, subject=event.subject, data=event.data)
