"""Shared pieces of request and response models: instants, strict numbers, the error shape."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_EPOCH_S = 253402300799
_EPOCH_MS_FROM = 10**11


class Answer(BaseModel):
    """Base of response models. Defaults are part of the answer, so they are required in its schema."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, defer_build=True, json_schema_serialization_defaults_required=True
    )


class Ask(BaseModel):
    """Base of request bodies and queries; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class LenientAsk(BaseModel):
    """Base of bodies and queries that old clients send; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class ErrorDetail(Answer):
    """code: stable and snake_case; details: data for programs."""

    code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class ErrorBody(Answer):
    """The one error shape. `detail` repeats the message for older clients."""

    error: ErrorDetail
    detail: str


def _plain_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _json_int(value: Any) -> Any:
    """JSON Schema calls 90.0 an integer; pydantic's lax mode would also take true and "90"."""
    if isinstance(value, bool | str):
        raise ValueError("must be an integer")
    return value


JsonInt = Annotated[int, BeforeValidator(_json_int)]
Seconds = Annotated[float, Field(ge=0, le=86400), BeforeValidator(_plain_number)]


def parse_instant(value: Any) -> Any:
    """RFC 3339, epoch seconds or epoch milliseconds → wall milliseconds. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, bool):
        raise ValueError("must be an RFC 3339 time or epoch seconds or milliseconds")
    if isinstance(value, str):
        if re.fullmatch(r"\d{1,16}(\.\d{1,9})?", value):
            return parse_instant(float(value))
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be an RFC 3339 time or epoch seconds or milliseconds") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)
    if not isinstance(value, int | float):
        raise ValueError("must be an RFC 3339 time or epoch seconds or milliseconds")
    millis = round(value if value >= _EPOCH_MS_FROM else value * 1000)
    if not 0 <= millis <= MAX_EPOCH_S * 1000:
        raise ValueError("is outside of the years 1970 to 9999")
    return millis


Instant = Annotated[
    int | None,
    BeforeValidator(parse_instant, json_schema_input_type=str | float | None),
    Field(description="RFC 3339, epoch seconds or epoch milliseconds"),
]


def rfc3339_ms(millis: int | None) -> str | None:
    """Wall milliseconds → `2026-01-31T12:00:00.000Z`."""
    if millis is None:
        return None
    moment = datetime.fromtimestamp(millis / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
